// Sixteen float32 lanes at a time: loads and stores of bfloat16 and float32, and the functions that the kernels need.
//
// Not-a-number and infinity go through everything as in IEEE arithmetic, which is why this is not compiled with -ffast-math.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

using Floats = __m512;   // 16 x float32
using Words = __m512i;   // 16 x 32 bits
using Mask = __mmask16;  // one bit a lane

/// A bfloat16 number: the upper half of a float32.
struct bf16 {
    uint16_t bits;
};

/// In place of a mask: all sixteen lanes.
struct All {};

inline Mask first_lanes(long n) { return n >= 16 ? Mask(0xFFFF) : Mask((1u << n) - 1); }

inline Floats all(float x) { return _mm512_set1_ps(x); }

// Loads and stores -------------------------------------------------------------------------------------------------------

inline Floats load(const float* p, All = {}) { return _mm512_loadu_ps(p); }
inline Floats load(const float* p, Mask m) { return _mm512_maskz_loadu_ps(m, p); }
inline void store(float* p, Floats x, All = {}) { _mm512_storeu_ps(p, x); }
inline void store(float* p, Floats x, Mask m) { _mm512_mask_storeu_ps(p, m, x); }

inline Floats widen(__m256i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); }

/// Round to the nearest bfloat16, ties to even.
inline __m256i narrow(Floats x) {
#ifdef __AVX512BF16__
    return (__m256i)_mm512_cvtneps_pbh(x);
#else
    Words w = _mm512_castps_si512(x);
    Words odd = _mm512_and_si512(_mm512_srli_epi32(w, 16), _mm512_set1_epi32(1));
    Words rounded = _mm512_add_epi32(w, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
    Mask nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    rounded = _mm512_mask_or_epi32(rounded, nan, w, _mm512_set1_epi32(0x00400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
#endif
}

inline Floats load(const bf16* p, All = {}) { return widen(_mm256_loadu_si256((const __m256i*)p)); }
inline Floats load(const bf16* p, Mask m) { return widen(_mm256_maskz_loadu_epi16(m, p)); }
inline void store(bf16* p, Floats x, All = {}) { _mm256_storeu_si256((__m256i*)p, narrow(x)); }
inline void store(bf16* p, Floats x, Mask m) { _mm256_mask_storeu_epi16(p, m, narrow(x)); }

inline float scalar(float x) { return x; }
inline float scalar(bf16 x) {
    uint32_t w = uint32_t(x.bits) << 16;
    float f;
    std::memcpy(&f, &w, 4);
    return f;
}
inline void set(float* p, float x) { *p = x; }
inline void set(bf16* p, float x) { store(p, all(x), Mask(1)); }

/// Fetch what lies one kilobyte behind p: the processor's own foresight ends with each page.
inline void fetch_ahead(const void* p) { _mm_prefetch(static_cast<const char*>(p) + 1024, _MM_HINT_T0); }

/// Fetch n elements of each row into the caches: where rows lie far apart, the processor does not foresee them, and waiting for
/// memory would take longer than computing.
template <class E>
inline void prefetch(const E* x, long row, long num_rows, long n) {
    for (long i = 0; i < num_rows; i++)
        for (long e = 0; e < n; e += 64 / long(sizeof(E))) _mm_prefetch(reinterpret_cast<const char*>(x + i * row + e), _MM_HINT_T0);
}

/// Call body(i, lanes) for i = 0, 16, 32 ... < n; lanes is All, or a Mask of what is left at the end.
template <class Body>
inline void each16(long n, Body body) {
    long i = 0;
    for (; i + 16 <= n; i += 16) body(i, All{});
    if (i < n) body(i, first_lanes(n - i));
}

// Arithmetic -------------------------------------------------------------------------------------------------------------

inline Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline Floats magnitude(Floats x) { return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7FFFFFFF))); }
/// x, or 0 in the lanes that are masked out, whatever stands there.
inline Floats only(Floats x, All) { return x; }
inline Floats only(Floats x, Mask m) { return _mm512_maskz_mov_ps(m, x); }
inline float sum(Floats x) { return _mm512_reduce_add_ps(x); }
inline float largest(Floats x) { return _mm512_reduce_max_ps(x); }

/// 2^x within 1e-7: 2^n times a polynomial of x - n, which lies within a half of 0 (fitted minimax, relative error 2e-9).
/// `reduce` gives 0 and not NaN for infinities, so that 2^-inf = 0 and 2^inf = inf.
inline Floats exp2(Floats x) {
    Floats f = _mm512_reduce_ps(x, 0);
    Floats p = all(1.534580787e-4f);
    p = fma(p, f, all(1.339993157e-3f));
    p = fma(p, f, all(9.618488976e-3f));
    p = fma(p, f, all(5.550328776e-2f));
    p = fma(p, f, all(2.402264689e-1f));
    p = fma(p, f, all(6.931472057e-1f));
    p = fma(p, f, all(1.0f));
    return _mm512_scalef_ps(p, _mm512_sub_ps(x, f));
}

/// The same within 3e-6, for results that are rounded to bfloat16.
inline Floats exp2_rough(Floats x) {
    Floats f = _mm512_reduce_ps(x, 0);
    Floats p = all(9.570097065e-3f);
    p = fma(p, f, all(5.591786329e-2f));
    p = fma(p, f, all(2.402474498e-1f));
    p = fma(p, f, all(6.931218144e-1f));
    p = fma(p, f, all(9.999992614e-1f));
    return _mm512_scalef_ps(p, _mm512_sub_ps(x, f));
}

/// The one that is precise enough for results of type E.
template <class E>
inline Floats exp2_for(Floats x) {
    return sizeof(E) == 2 ? exp2_rough(x) : exp2(x);
}

constexpr float LOG2E = 1.44269504088896341f;
constexpr float LN2 = 0.693147180559945309f;

inline Floats exp(Floats x) { return exp2(x * all(LOG2E)); }

/// 1 / x of numbers that are neither 0 nor infinite: an estimate of 14 bits and one step of Newton's, faster than a division.
inline Floats reciprocal(Floats x) {
    Floats r = _mm512_rcp14_ps(x);
    return fma(_mm512_fnmadd_ps(x, r, all(1.0f)), r, r);
}

/// log2(x) of positive numbers within 1e-7: exponent, and the series of the logarithm of the significand m (0.75 up to 1.5) in
/// (m - 1) / (m + 1).
inline Floats log2(Floats x) {
    Floats m = _mm512_getmant_ps(x, _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_src);
    Floats t = (m - all(1.0f)) / (m + all(1.0f)), s = t * t;
    Floats p = all(0.320598898f);
    p = fma(p, s, all(0.412198583f));
    p = fma(p, s, all(0.577078016f));
    p = fma(p, s, all(0.961796694f));
    p = fma(p, s, all(2.885390082f));
    return fma(p, t, _mm512_getexp_ps(x / m));
}

/// 1 / (1 + e^-x), precise enough for results of type E. Far below 0 it ends at 2^-126, so that its denominator is finite.
template <class E>
inline Floats sigmoid(Floats x) {
    return reciprocal(all(1.0f) + exp2_for<E>(_mm512_min_ps(all(126.0f), x * all(-LOG2E))));
}

/// Near 0 a polynomial, so that small values keep their relative precision; elsewhere 1 - 2 / (e^2|x| + 1) with the sign of x.
inline Floats tanh(Floats x) {
    Floats s = x * x;
    Floats p = all(-5.905856718e-3f);
    p = fma(p, s, all(2.080537449e-2f));
    p = fma(p, s, all(-5.378668054e-2f));
    p = fma(p, s, all(1.333195821e-1f));
    p = fma(p, s, all(-3.333329927e-1f));
    Floats near = fma(p * s, x, x);
    Floats far = all(1.0f) - all(2.0f) / (exp2(magnitude(x) * all(2 * LOG2E)) + all(1.0f));
    Words sign = _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(int(0x80000000)));
    far = _mm512_castsi512_ps(_mm512_or_si512(_mm512_castps_si512(far), sign));
    return _mm512_mask_mov_ps(far, _mm512_cmp_ps_mask(s, all(0.36f), _CMP_LT_OQ), near);
}

/// The normal distribution's cumulative probability and density at x.
///
/// The tail beyond t = |x| is e^(-t²/2) R(t); R, half the scaled complementary error function, is smooth and is a polynomial
/// of 1 / (1 + 0.3 t) (the form of Abramowitz & Stegun 7.1.26, fitted minimax on 0 ... 14, relative error 3e-8).
template <class E>
inline void normal(Floats x, Floats& cumulative, Floats& density) {
    Floats t = _mm512_min_ps(all(20.0f), magnitude(x));
    Floats y = reciprocal(fma(all(0.3f), t, all(1.0f)));
    Floats r = all(-4.509308922e-3f);
    r = fma(r, y, all(6.181516312e-2f));
    r = fma(r, y, all(-2.216716489e-1f));
    r = fma(r, y, all(2.950411631e-1f));
    r = fma(r, y, all(-1.285680028e-1f));
    r = fma(r, y, all(1.687384421e-1f));
    r = fma(r, y, all(8.623904217e-2f));
    r = fma(r, y, all(1.235976191e-1f));
    r = fma(r, y, all(1.193015951e-1f));
    r = fma(r, y, all(1.595277522e-5f));
    Floats bell = exp2_for<E>(x * x * all(-0.5f * LOG2E));
    Floats tail = bell * r;
    cumulative = _mm512_mask_sub_ps(tail, _mm512_cmp_ps_mask(x, all(0.0f), _CMP_GE_OQ), all(1.0f), tail);
    density = bell * all(0.398942280401432678f);
}

/// Name a kernel's two versions for Python: pointers to functions that return 0, or 1 where memory ran out.
#define EXPORT(kernel)                                                 \
    extern "C" {                                                       \
    [[gnu::visibility("default")]] auto kernel##_f32 = &kernel<float>; \
    [[gnu::visibility("default")]] auto kernel##_bf16 = &kernel<bf16>; \
    }
