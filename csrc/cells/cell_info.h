#pragma once

#include <initializer_list>

namespace fastrnn::cells {

// What a parameter of a layer is. Sizes: G gates, H units, I inputs, P projected units (H without a projection).
enum class ParameterKind {
  input_matrix,  // [G*H, I], multiplies x
  state_matrix,  // [G*H, P], multiplies h
  input_bias,    // [G*H], is added to the product with x
  state_bias,    // [G*H], is added to the product with h
  unit_vector,   // [H], the cell reads a number of it for each unit
  projection,    // [P, H], multiplies the cell's output
};

// Which layers have the parameter.
enum class Needs { always, bias, projection };

struct Parameter {
  const char* symbol;  // in equations and messages
  const char* name;    // in modules, before _l0 and _reverse
  ParameterKind kind;
  Needs needs = Needs::always;
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

// States of a cell beside h, and vectors of a unit, at most.
constexpr int kMostCellStates = 3, kMostUnitVectors = 4;

// All there is to know of a cell beside its equations.
struct CellInfo {
  const char* name;            // in operators
  const char* layer;           // the class of its layer
  List<const char*, 8> gates;  // in the order of their rows in W_ih, W_hh and the biases
  // Numbers that a unit keeps of a step for the backward, beside the states.
  int saved;
  // Of the first so many gates a cell uses only the sum of both shares, from the input and from the hidden state.
  int whole_gates;
  // Does the hidden state before the step, h_prev, reach the cell past W_hh?
  bool reads_h = false;
  List<const char*, 1 + kMostCellStates> states = {"h"};  // h first
  // In the order in which operators take them, for each direction.
  List<Parameter, 5 + kMostUnitVectors> parameters = {kW_ih, kW_hh, kB_ih, kB_hh};
  const char* nonlinearity = nullptr;  // of an Elman RNN

  constexpr int count(ParameterKind kind) const {
    int n = 0;
    for (const Parameter& parameter : parameters) n += parameter.kind == kind;
    return n;
  }
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
  static constexpr int cell_states = info_.states.size() - 1;  // beside h
  static constexpr int unit_vectors = info_.count(ParameterKind::unit_vector);
  static constexpr bool projects = info_.can(Needs::projection);
};

}  // namespace fastrnn::cells
