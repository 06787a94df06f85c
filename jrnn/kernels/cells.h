// The gate arithmetic of the cells on one vector of hidden units, and its derivatives.
//
// A cell defines
//   G                 the number of gates in w_ih, w_hh and b;
//   C                 the number of pre-activations (columns) of each unit;
//   XF, XN            the first column of the input product, and the number of its columns;
//   HF, HN            the same for the recurrent product;
//   SAVED             the number of residual arrays of each step, for the backward pass;
//   UV                the number of vectors of units in a panel;
//   CELL_STATE        whether the carry is (h, c);
//   HAS_DIRECT_PATH   whether h' also depends on h without the recurrent product, as in z * h;
//   h_column(g)       the column of gate g of w_hh (gate g of w_ih has column XF + g);
//   bias_column(e)    the column that extra parameter e is added to, or -1.
#pragma once

#include "simd.h"

namespace {

struct Step {           // one step of one sequence, for one vector of units
  const float* a;       // pre-activations: column j at a[j * stride]
  int64_t stride;
  const float* h;       // the carry before the step
  const float* c;
  const float* extra[3];
  float* y;
  float* c_new;
  float* saved;         // residual array s at saved[s * H]; null without gradients
  int64_t H;
  int64_t n;            // the vector has units in its first n lanes; all lanes if n >= W
};

struct BackwardStep {
  const float* saved;   // the residuals of the step
  const float* y;       // the output of this step
  const float* h;       // the carry before the step
  const float* c;
  const float* extra[3];
  float* d_extra[3];    // sums of the gradients of `extra` over sequences and steps
  float* d;             // cotangents of the pre-activations: column j at d[j * stride]
  int64_t stride;
  float* d_c;           // cotangent of c after the step, overwritten by that of c before the step
  int64_t H;
  int64_t n;
};

template <bool PEEPHOLES, bool COUPLED>
struct Lstm {
  static constexpr int G = COUPLED ? 3 : 4, C = G, XF = 0, XN = G, HF = 0, HN = G;
  static constexpr int SAVED = G + 1, UV = 1;
  static constexpr bool CELL_STATE = true, HAS_DIRECT_PATH = false;
  // Columns of the gates and indices of the residual arrays; STATE is that of c. With coupled gates
  // the input gate is 1 - f, and I is not used.
  static constexpr int I = 0, F = COUPLED ? 0 : 1, CANDIDATE = F + 1, O = F + 2, STATE = F + 3;
  static constexpr int h_column(int g) { return g; }
  static constexpr int bias_column(int) { return -1; }

  JRNN_INLINE vf gate(const Step& s, int column, int peephole, vf c) {
    vf a = load(s.a + column * s.stride);
    if (PEEPHOLES) a += load(s.extra[peephole], s.n) * c;
    return sigmoid(a);
  }

  JRNN_INLINE void forward(const Step& s) {
    vf c_prev = load(s.c, s.n);
    vf f = gate(s, F, 1, c_prev);
    vf i = COUPLED ? 1.0f - f : gate(s, I, 0, c_prev);
    vf g = tanh(load(s.a + CANDIDATE * s.stride));
    vf c = f * c_prev + i * g;
    vf o = gate(s, O, 2, c);
    store(s.y, o * tanh(c), s.n);
    store(s.c_new, c, s.n);
    if (s.saved) {
      if (!COUPLED) store(s.saved + I * s.H, i, s.n);
      store(s.saved + F * s.H, f, s.n);
      store(s.saved + CANDIDATE * s.H, g, s.n);
      store(s.saved + O * s.H, o, s.n);
    }
  }

  // Takes the cotangent of h'; returns that of h through all paths but the recurrent product.
  JRNN_INLINE vf backward(const BackwardStep& s, vf dh) {
    vf f = load(s.saved + F * s.H, s.n), g = load(s.saved + CANDIDATE * s.H, s.n);
    vf i = COUPLED ? 1.0f - f : load(s.saved + I * s.H, s.n);
    vf o = load(s.saved + O * s.H, s.n), c = load(s.saved + STATE * s.H, s.n);
    vf c_prev = load(s.c, s.n);
    vf th = tanh(c);
    vf d_o = dh * th * o * (1.0f - o);
    vf dc = load(s.d_c) + dh * o * (1.0f - th * th);
    if (PEEPHOLES) {
      dc += d_o * load(s.extra[2], s.n);
      store(s.d_extra[2], load(s.d_extra[2]) + d_o * c);
    }
    vf d_f = dc * (COUPLED ? c_prev - g : c_prev) * f * (1.0f - f);
    vf d_i = dc * g * i * (1.0f - i);
    vf dc_prev = dc * f;
    if (PEEPHOLES) {
      dc_prev += d_f * load(s.extra[1], s.n);
      store(s.d_extra[1], load(s.d_extra[1]) + d_f * c_prev);
      if (!COUPLED) {
        dc_prev += d_i * load(s.extra[0], s.n);
        store(s.d_extra[0], load(s.d_extra[0]) + d_i * c_prev);
      }
    }
    if (!COUPLED) store(s.d + I * s.stride, d_i);
    store(s.d + F * s.stride, d_f);
    store(s.d + CANDIDATE * s.stride, dc * i * (1.0f - g * g));
    store(s.d + O * s.stride, d_o);
    store(s.d_c, dc_prev);
    return vf{};
  }
};

// The GRU that applies the reset gate after the recurrent product. The candidate has two columns: N
// for its input product, and NH for its recurrent product.
struct Gru {
  static constexpr int G = 3, C = 4, XF = 1, XN = 3, HF = 0, HN = 3, SAVED = 4, UV = 1;
  static constexpr bool CELL_STATE = false, HAS_DIRECT_PATH = true;
  static constexpr int NH = 0, R = 1, Z = 2, N = 3;
  static constexpr int h_column(int g) { return g == 2 ? NH : R + g; }
  static constexpr int bias_column(int e) { return e == 0 ? NH : -1; }

  JRNN_INLINE void forward(const Step& s) {
    vf nh = load(s.a + NH * s.stride);
    vf r = sigmoid(load(s.a + R * s.stride)), z = sigmoid(load(s.a + Z * s.stride));
    vf n = tanh(load(s.a + N * s.stride) + r * nh);
    store(s.y, (1.0f - z) * n + z * load(s.h, s.n), s.n);
    if (s.saved) {
      store(s.saved + NH * s.H, nh, s.n);
      store(s.saved + R * s.H, r, s.n);
      store(s.saved + Z * s.H, z, s.n);
      store(s.saved + N * s.H, n, s.n);
    }
  }

  JRNN_INLINE vf backward(const BackwardStep& s, vf dh) {
    vf nh = load(s.saved + NH * s.H, s.n), r = load(s.saved + R * s.H, s.n);
    vf z = load(s.saved + Z * s.H, s.n), n = load(s.saved + N * s.H, s.n);
    vf d_n = dh * (1.0f - z) * (1.0f - n * n);
    store(s.d + NH * s.stride, d_n * r);
    store(s.d + R * s.stride, d_n * nh * r * (1.0f - r));
    store(s.d + Z * s.stride, dh * (load(s.h, s.n) - n) * z * (1.0f - z));
    store(s.d + N * s.stride, d_n);
    return dh * z;
  }
};

enum class Activation { kTanh, kRelu, kSigmoid };

template <Activation A>
struct Elman {
  static constexpr int G = 1, C = 1, XF = 0, XN = 1, HF = 0, HN = 1, SAVED = 0, UV = 4;
  static constexpr bool CELL_STATE = false, HAS_DIRECT_PATH = false;
  static constexpr int h_column(int g) { return g; }
  static constexpr int bias_column(int) { return -1; }

  JRNN_INLINE void forward(const Step& s) {
    vf a = load(s.a);
    vf y = A == Activation::kTanh ? tanh(a) : A == Activation::kSigmoid ? sigmoid(a)
                                            : a < 0.0f ? vf{} : a;
    store(s.y, y, s.n);
  }

  JRNN_INLINE vf backward(const BackwardStep& s, vf dh) {
    vf y = load(s.y, s.n);
    vf d = A == Activation::kTanh      ? dh * (1.0f - y * y)
           : A == Activation::kSigmoid ? dh * y * (1.0f - y)
                                       : y > 0.0f ? dh : vf{};
    store(s.d, d);
    return vf{};
  }
};

}  // namespace
