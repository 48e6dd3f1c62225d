#pragma once

#include <initializer_list>

namespace fastrnn::cells {

// What a parameter of a layer is. Sizes: G gates, H units, I inputs, P projected units (H without a projection).
enum class ParameterKind {
  input_matrix,  // [G*H, I], multiplies x
  state_matrix,  // [G*H, P], multiplies h
  input_bias,    // [G*H], is added to the product with x
  state_bias,    // [G*H], is added to the product with h
  unit_vectors,  // [n, H] or [H], the cell reads n numbers of it for each unit
  gate_vector,   // [G*H], the cell reads G numbers of it for each unit
  projection,    // [P, H], multiplies the cell's output
};

// Which layers have the parameter.
enum class Needs { always, bias, projection };

struct Parameter {
  const char* symbol;  // in equations and messages
  const char* name;    // in modules, before _l0 and _reverse
  ParameterKind kind;
  Needs needs = Needs::always;
  int rows = 0;  // n of unit_vectors [n, H]; 0 for [H]
};

inline constexpr Parameter kW_ih{"W_ih", "weight_ih", ParameterKind::input_matrix};
inline constexpr Parameter kW_hh{"W_hh", "weight_hh", ParameterKind::state_matrix};
inline constexpr Parameter kB_ih{"b_ih", "bias_ih", ParameterKind::input_bias, Needs::bias};
inline constexpr Parameter kB_hh{"b_hh", "bias_hh", ParameterKind::state_bias, Needs::bias};
inline constexpr Parameter kW_hr{"W_hr", "weight_hr", ParameterKind::projection, Needs::projection};

// Up to N values in a constant.
template <class T, int N>
struct List {
  T values[N] = {};
  int count = 0;

  constexpr List(std::initializer_list<T> given) {
    for (const T& value : given) values[count++] = value;
  }
  constexpr int size() const { return count; }
  constexpr const T* begin() const { return values; }
  constexpr const T* end() const { return values + count; }
  constexpr const T& operator[](int i) const { return values[i]; }
};

// What is added to the variance of what is normalised, as in torch.nn.LayerNorm.
constexpr double kNormEps = 1e-5;

// States of a cell beside h, vectors of a unit and gates, at most.
constexpr int kMostCellStates = 3, kMostUnitVectors = 6, kMostGates = 8;

// All there is to know of a cell beside its equations.
struct CellInfo {
  const char* name;                     // in operators
  const char* layer;                    // the class of its layer
  List<const char*, kMostGates> gates;  // in the order of their rows in W_ih, W_hh and the biases
  // Numbers that a unit keeps of a step for the backward, beside the states.
  int saved;
  // Of the first so many gates a cell uses only the sum of both shares, from the input and from the hidden state.
  int whole_gates;
  // Does the hidden state before the step, h_prev, reach the cell past W_hh?
  bool reads_h = false;
  // The last so many gates multiply W_hh not with h_prev but with v, which the cell makes of the other gates.
  int late_gates = 0;
  // Is the product with W_hh normalised, over all gates of a sequence, before it reaches the cell, and so are the
  // states beside h before they make h (Ba et al. 2016)?
  bool normalised = false;
  List<const char*, 1 + kMostCellStates> states = {"h"};  // h first
  // In the order in which operators take them, for each direction.
  List<Parameter, 5 + kMostUnitVectors> parameters = {kW_ih, kW_hh, kB_ih, kB_hh};
  const char* nonlinearity = nullptr;  // where cells of a layer differ in it
  // Are there persistent CUDA kernels? They take minutes to compile.
  bool persistent = false;

  constexpr int count(ParameterKind kind) const {
    int n = 0;
    for (const Parameter& parameter : parameters) n += parameter.kind == kind;
    return n;
  }
  // Vectors of a unit in a parameter, and in all.
  constexpr int vectors_of(const Parameter& parameter) const {
    switch (parameter.kind) {
      case ParameterKind::unit_vectors:
        return parameter.rows == 0 ? 1 : parameter.rows;
      case ParameterKind::gate_vector:
        return gates.size();
      default:
        return 0;
    }
  }
  constexpr int unit_vectors() const {
    int n = 0;
    for (const Parameter& parameter : parameters) n += vectors_of(parameter);
    return n;
  }
  // Without W_ih x holds the gates' shares from the input. Without W_hh h_prev is the one gate's share.
  constexpr bool has(ParameterKind kind) const { return count(kind) > 0; }
  constexpr bool can(Needs option) const {
    for (const Parameter& parameter : parameters) {
      if (parameter.needs == option) return true;
    }
    return false;
  }
  constexpr int count_parameters(bool bias, bool projected) const {
    int n = 0;
    for (const Parameter& parameter : parameters) n += is_there(parameter, bias, projected);
    return n;
  }
  static constexpr bool is_there(const Parameter& parameter, bool bias, bool projected) {
    return parameter.needs == Needs::always || (parameter.needs == Needs::bias ? bias : projected);
  }
};

// The numbers of a CellInfo, as kernels use them.
template <const CellInfo& info_>
struct CellConstants {
  static constexpr const CellInfo& info = info_;
  static constexpr int gates = info_.gates.size();
  static constexpr int saved = info_.saved;
  static constexpr int whole_gates = info_.whole_gates;
  static constexpr bool reads_h = info_.reads_h;
  static constexpr bool has_W_ih = info_.has(ParameterKind::input_matrix);
  static constexpr bool has_W_hh = info_.has(ParameterKind::state_matrix);
  static constexpr int cell_states = info_.states.size() - 1;  // beside h
  static constexpr bool normalised = info_.normalised;
  static constexpr int late_gates = info_.late_gates;
  static constexpr int unit_vectors = info_.unit_vectors();
  static constexpr bool projects = info_.can(Needs::projection);
};

}  // namespace fastrnn::cells
