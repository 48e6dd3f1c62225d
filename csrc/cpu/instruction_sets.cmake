# The instruction sets that code of the CPU is compiled for, and the flags for each. The extension, tests/csrc and
# benchmarks/csrc include this file.
find_package(OpenMP REQUIRED)
set(FASTRNN_ISAS baseline)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  list(APPEND FASTRNN_ISAS avx2 avx2_vnni avx512 avx512_vnni avx512_bf16)
endif()
# Those that compute a cell in a way of their own; VNNI is of products only.
set(FASTRNN_ISAS_OF_CELLS ${FASTRNN_ISAS})
list(FILTER FASTRNN_ISAS_OF_CELLS EXCLUDE REGEX vnni)
# No -ffast-math: NaN and Inf go through. -fno-trapping-math lets comparisons in the activations become vector selects.
# -falign-loops=64: EPYC (Zen 3, AVX2), products of 8 to 48 rows 1.02 to 1.12 times as fast.
# -Wno-maybe-uninitialized: the AVX-512 headers of GCC set that warning off.
set(FASTRNN_COMMON_FLAGS -O3 -falign-loops=64 -Wno-maybe-uninitialized -fno-trapping-math -fno-math-errno -ffp-contract=fast)
set(FASTRNN_FLAGS_baseline "")
set(FASTRNN_FLAGS_avx2 -mavx2 -mfma)
set(FASTRNN_FLAGS_avx2_vnni ${FASTRNN_FLAGS_avx2} -mavxvnni)
set(FASTRNN_FLAGS_avx512 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma)
set(FASTRNN_FLAGS_avx512_vnni ${FASTRNN_FLAGS_avx512} -mavx512vnni)
set(FASTRNN_FLAGS_avx512_bf16 ${FASTRNN_FLAGS_avx512} -mavx512bf16)

function(fastrnn_use_instruction_set target isa)
  target_include_directories(${target} PRIVATE ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/..)
  target_compile_definitions(${target} PRIVATE FASTRNN_ISA=${isa})
  target_compile_options(${target} PRIVATE ${FASTRNN_COMMON_FLAGS} ${FASTRNN_FLAGS_${isa}} ${OpenMP_CXX_FLAGS})
endfunction()
