#pragma once

#include <initializer_list>
#include <memory>
#include <stdexcept>
#include <utility>

namespace fastrnn {

enum class Operation {
  add,
  subtract,
  multiply,
  divide,
  sigmoid,
  tanh,
  relu,
  exp,
  log_sigmoid,
  if_positive,           // (x, a, b): a where x is positive or NaN, else b
  zero_unless_positive,  // (h, d): d where h is positive or NaN, else zero
};

class Value;

// Numbers of a type that this code does not know: a tensor (torch/differentiable.cpp).
class Numbers {
 public:
  virtual ~Numbers() = default;
  // At least one of the operands has numbers; the others may be a single one.
  virtual Value apply(Operation operation, std::initializer_list<Value> operands) const = 0;
};

// What the functions of a cell compute with where it is a tensor: many numbers, or one. So code that is compiled outside
// of the extension (cpu/own_cell.cpp) needs neither the headers of torch nor its version.
class Value {
 public:
  Value(double number = 0) : number_(number) {}
  explicit Value(std::shared_ptr<const Numbers> numbers) : numbers_(std::move(numbers)) {}

  const Numbers* numbers() const { return numbers_.get(); }  // null: it is one number
  double number() const { return number_; }

  static Value apply(Operation operation, std::initializer_list<Value> operands) {
    for (const Value& operand : operands) {
      if (operand.numbers_) return operand.numbers_->apply(operation, operands);
    }
    const double a = operands.begin()->number_, b = (operands.end() - 1)->number_;
    switch (operation) {
      case Operation::add:
        return a + b;
      case Operation::subtract:
        return a - b;
      case Operation::multiply:
        return a * b;
      case Operation::divide:
        return a / b;
      default:
        throw std::invalid_argument("a function of a cell: expected a value that comes from its arguments");
    }
  }
  friend Value operator+(const Value& a, const Value& b) { return apply(Operation::add, {a, b}); }
  friend Value operator-(const Value& a, const Value& b) { return apply(Operation::subtract, {a, b}); }
  friend Value operator*(const Value& a, const Value& b) { return apply(Operation::multiply, {a, b}); }
  friend Value operator/(const Value& a, const Value& b) { return apply(Operation::divide, {a, b}); }
  Value operator-() const { return 0 - *this; }
  Value& operator+=(const Value& other) { return *this = *this + other; }
  Value& operator-=(const Value& other) { return *this = *this - other; }
  Value& operator*=(const Value& other) { return *this = *this * other; }
  Value& operator/=(const Value& other) { return *this = *this / other; }

 private:
  std::shared_ptr<const Numbers> numbers_;
  double number_ = 0;
};

// The activations, as cells/cell.h has them.
struct ValueMath {
  static Value sigmoid(const Value& x) { return Value::apply(Operation::sigmoid, {x}); }
  static Value tanh(const Value& x) { return Value::apply(Operation::tanh, {x}); }
  static Value relu(const Value& x) { return Value::apply(Operation::relu, {x}); }
  static Value exp(const Value& x) { return Value::apply(Operation::exp, {x}); }
  static Value log_sigmoid(const Value& x) { return Value::apply(Operation::log_sigmoid, {x}); }
  static Value if_positive(const Value& x, const Value& a, const Value& b) {
    return Value::apply(Operation::if_positive, {x, a, b});
  }
  static Value zero_unless_positive(const Value& h, const Value& d) {
    return Value::apply(Operation::zero_unless_positive, {h, d});
  }
};

}  // namespace fastrnn
