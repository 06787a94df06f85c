// Vectors of floats, as wide as those of the instruction set that this file is compiled for, and
// the activation functions on them. All names have internal linkage, because the file is compiled
// several times.
#pragma once

#include <stdint.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define JRNN_WIDTH 16
#define JRNN_REGISTERS 32
#elif defined(__AVX2__)
#define JRNN_WIDTH 8
#define JRNN_REGISTERS 16
#elif defined(__aarch64__)
#define JRNN_WIDTH 4
#define JRNN_REGISTERS 32
#else
#define JRNN_WIDTH 4
#define JRNN_REGISTERS 16
#endif

#define JRNN_INLINE static inline __attribute__((always_inline))

namespace {

constexpr int W = JRNN_WIDTH;
typedef float vf __attribute__((vector_size(4 * W)));
typedef int32_t vi __attribute__((vector_size(4 * W)));

JRNN_INLINE vf load(const float* p) {
  vf v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

JRNN_INLINE void store(float* p, vf v) { __builtin_memcpy(p, &v, sizeof v); }

// Loads the first n lanes. The other lanes are zero, and their memory is not read.
JRNN_INLINE vf load(const float* p, int64_t n) {
  if (n >= W) return load(p);
  vf v = {};
  for (int64_t k = 0; k < n; ++k) v[k] = p[k];
  return v;
}

// Stores the first n lanes.
JRNN_INLINE void store(float* p, vf v, int64_t n) {
  if (n >= W) return store(p, v);
  for (int64_t k = 0; k < n; ++k) p[k] = v[k];
}

// Returns a vector whose lanes are all `a`. Compilers optimize a - 0 into a broadcast. They do not
// optimize 0 + a, which turns -0 into 0.
JRNN_INLINE vf splat(float a) { return a - vf{}; }

// a < b ? a : b and a > b ? a : b, which propagate a NaN in b. Compilers generate two instructions
// for these expressions; the intrinsics are one.
JRNN_INLINE vf min(vf a, vf b) {
#if defined(__AVX512F__)
  return (vf)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (vf)_mm256_min_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
  return (vf)_mm_min_ps((__m128)a, (__m128)b);
#else
  return a < b ? a : b;
#endif
}

JRNN_INLINE vf max(vf a, vf b) {
#if defined(__AVX512F__)
  return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
  return (vf)_mm_max_ps((__m128)a, (__m128)b);
#else
  return a > b ? a : b;
#endif
}

JRNN_INLINE float sum(vf v) {
  float total = 0;
  for (int k = 0; k < W; ++k) total += v[k];
  return total;
}

// e^x - 1 = scale * p + (scale - 1) for -88 <= x <= 88. Cody-Waite range reduction by n ln 2, then
// the Taylor series on |r| <= ln(2)/2, with a remainder below 2^-27.
struct Exp {
  vf p, scale;
};

JRNN_INLINE Exp reduced_exp(vf x) {
  const vf magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to the nearest integer
  vf shifted = x * 1.44269504f + magic;
  vf n = shifted - magic;
  vf r = x - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  vf q = splat(1.0f / 5040);
  q = q * r + 1.0f / 720;
  q = q * r + 1.0f / 120;
  q = q * r + 1.0f / 24;
  q = q * r + 1.0f / 6;
  q = q * r + 0.5f;
  vf p = q * (r * r) + r;
  vi bits = ((vi)shifted << 23) + 0x3f800000;
  return {p, (vf)bits};
}

JRNN_INLINE vf sigmoid(vf x) {
  Exp e = reduced_exp(max(splat(-87.0f), min(splat(87.0f), -x)));
  return 1.0f / (1.0f + (e.scale * e.p + e.scale));
}

JRNN_INLINE vf tanh(vf x) {
  const vi sign = (vi)x & (int32_t)0x80000000;
  vf a = (vf)((vi)x & 0x7fffffff);
  Exp e = reduced_exp(-2.0f * min(splat(9.5f), a));
  vf m = e.scale * e.p + (e.scale - 1.0f);
  return (vf)((vi)((0.0f - m) / (m + 2.0f)) | sign);  // -m would be -0 where m is 0
}

}  // namespace
