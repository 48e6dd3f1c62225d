#pragma once

#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/rnn.h"

// A cell is a struct of numbers and two functions, each templated on the activations M and the value type V
// (a float, a vector of them, a tensor):
//   forward(gx, gh, h_prev, s, c, h)
//     gx, gh [gates]: the gates' shares from the input, W_ih x + b_ih, and the hidden state, W_hh h + b_hh;
//     writes h, and s [saved] for the backward; c is the cell state, in and out.
//   backward(s, h_prev, h, c_prev, c, dh, dc, dgx, dgh, dh_prev)
//     dh, dc: gradients of the step's h and c. Writes dgx, and dgh where split_gate says that it differs;
//     turns dc into the gradient of c_prev; dh_prev comes in as zero and takes what reaches h_prev past W_hh,
//     where the cell uses it element by element.
//
// Every cell stands in this list once. The kernels, their dispatch and the operators are made from it.
#define FASTRNN_FOR_EACH_CELL(X) \
  X(Lstm)                        \
  X(Gru)                         \
  X(RnnTanh)                     \
  X(RnnRelu)
