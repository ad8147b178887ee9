// The formulas of function.py for the CPU, with each value read from memory as seldom as can be.
//
// function.py is the source of truth and says what is computed; the tests hold these loops to it. What is added here
// is order. A tensor is seen in one of two ways:
//   rows     (n, c, l): one statistic for each of c channels, over n and l. A contiguous (N, C, H, W).
//   columns  (n, c, l): rows of c columns, of which l neighbours share a statistic, over n and these l. l is 1 for
//                       channels-last, (N, C), and local statistics, where c = C*H*W; else it is that of small maps.
// One channel (or a tile of columns) at a time is copied into a buffer that fits the cache, so that all passes but the
// first stay out of memory. Moments are taken in one pass about a guess of the mean: a first value, then the mean so
// far. Their rounding grows with the distance of the guess: where that is several standard deviations (constants of
// 1e7 ahead of others), the pass is made again from the mean that it found. Blocks are joined as by Chan, Golub &
// LeVeque (1983), in double. How the work is cut depends on the shape alone, so that the number of threads does not
// change a bit of the result.
//
// Forward fills mean and var (biased), and shift where a ReLU follows, whose backward finds its mask with it; backward
// fills sum_dy and sum_product, which are the gradients of bias and weight.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>
#ifdef __AVX__
#include <immintrin.h>
#endif

namespace {

// What native.py packs; null is a tensor that is not there.
struct Call {
    const void *x, *dy, *weight, *bias;
    void *out, *mean, *var, *shift, *running_mean, *running_var, *sum_dy, *sum_product;
    int64_t* batches;
    int64_t n, c, l;
    int64_t parameters;  // numbers of weight and of bias
    int64_t inner;       // neighbouring statistics that share one; 0: parameters take turns (local, channels-last)
    int64_t locations;   // where running statistics are (C, locations) and statistics (locations, C); else 0
    int64_t relu, threads;
    double eps, momentum;
};

struct bfloat16 {
    uint16_t bits;
};

template <class T>
struct Wide {
    using type = T;
};
template <>
struct Wide<bfloat16> {
    using type = float;
};
template <class T>
using wide = typename Wide<T>::type;

inline float load(float v) { return v; }
inline double load(double v) { return v; }
inline float load(bfloat16 v) {
    const uint32_t bits = static_cast<uint32_t>(v.bits) << 16;
    float out;
    std::memcpy(&out, &bits, sizeof out);
    return out;
}
inline void store(float* p, float v) { *p = v; }
inline void store(double* p, double v) { *p = v; }
inline void store(bfloat16* p, float v) {
    uint32_t bits;
    std::memcpy(&bits, &v, sizeof bits);
    const uint32_t nearest = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // ties to even
    const uint32_t nan = (bits >> 16) | 0x40;
    p->bits = static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? nan : nearest);
}

constexpr int64_t BLOCK = 8192;      // values of a row that are summed at once
constexpr int64_t KEEP = 1 << 16;    // values of a buffer: a quarter of a megabyte of floats
constexpr int64_t WIDTH = 1024;      // columns of a tile, at most
constexpr int64_t ROOM = WIDTH + 16;  // of an array: no two that follow each other begin at one place of a page
constexpr int64_t HEIGHT = 256;      // rows of columns that are summed at once
constexpr int64_t CHUNKS = 32;       // of rows, at most, where there are few tiles
constexpr int64_t SMALL = 1 << 15;   // values that one thread is quickest with

#ifndef PAST_CACHE
#define PAST_CACHE (1 << 24)
#endif
constexpr int64_t LARGE = PAST_CACHE;  // bytes of an output that goes past the cache: it would push out all else

// Copies what is in the cache to where it need not be: the line is not read from memory first.
void copy_past_cache(void* to, const void* from, int64_t bytes) {
    char* out = static_cast<char*>(to);
    const char* in = static_cast<const char*>(from);
#ifdef __AVX__
    const int64_t head = std::min<int64_t>(bytes, -reinterpret_cast<intptr_t>(out) & 31), whole = (bytes - head) & ~31;
    std::memcpy(out, in, head);
    for (int64_t i = head; i < head + whole; i += 32)
        _mm256_stream_si256(reinterpret_cast<__m256i*>(out + i),
                            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in + i)));
    out += head + whole;
    in += head + whole;
    bytes -= head + whole;
#endif
    std::memcpy(out, in, bytes);
}
// What such copies of a thread end with, before others read them.
void past_cache_done(bool any) {
#ifdef __AVX__
    if (any) _mm_sfence();
#else
    (void)any;
#endif
}

// Asks for what a mask decides on: a load that waits for its mask would wait for memory twice.
template <class T>
inline void ask_for(const T* p, int64_t count) {
    for (int64_t j = 0; j < count; j += 64 / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(p + j);
}

// Stores value(j) for each j below `count`.
template <class T, class Value>
inline void put(T* __restrict to, int64_t count, bool past_cache, Value value) {
    if (!past_cache) {
#pragma omp simd
        for (int64_t j = 0; j < count; ++j) store(to + j, value(j));
        return;
    }
    T line[WIDTH];
    for (int64_t o = 0; o < count; o += WIDTH) {
        const int64_t some = std::min(WIDTH, count - o);
#pragma omp simd
        for (int64_t j = 0; j < some; ++j) store(line + j, value(o + j));
        copy_past_cache(to + o, line, some * sizeof(T));
    }
}

template <class A>
A* scratch(int64_t count) {
    static thread_local std::vector<A> buffer;
    if (static_cast<int64_t>(buffer.size()) < count) buffer.resize(count);
    return buffer.data();
}

int threads_for(const Call& call, int64_t values) { return values <= SMALL ? 1 : static_cast<int>(call.threads); }

template <class V>
inline V finite_or_zero(V v) {
    return std::abs(v) <= std::numeric_limits<V>::max() ? v : V(0);
}
template <class V>
inline V nan_unless_finite(V v) {
    return v - v;
}
template <class V>
inline V not_negative(V v) {  // and NaN where it is NaN
    return v < 0 ? V(0) : v;
}
template <bool RELU, class A>
inline A activated(A v) {
    return RELU && v < 0 ? A(0) : v;
}

// Whether the guess that moments were taken about is so far from the mean that their difference loses digits, or range:
// whether off^2 is more than 32 times the variance.
//     off = first / count
//     var = second / count - off^2
template <class A>
inline bool far(A first, A second, A inverse) {
    const A off = first * inverse;
    return (33 * off * off > 32 * (second * inverse)) | (second > std::numeric_limits<A>::max());
}

// Count, mean and sum of squared deviations, and how two of them join.
struct Moments {
    double count = 0, mean = 0, squares = 0;

    // `first` and `second` moments of `more` values about `guess`.
    template <class A>
    void join(double more, A guess, A first, A second) {
        const double off = finite_or_zero<double>(first) / more;
        join(more, guess + off, not_negative(second - off * off * more) + nan_unless_finite(first));
    }
    void join(double more, double its_mean, double its_squares) {
        const double total = count + more, delta = its_mean - mean;
        mean = (count * mean + more * its_mean) / total;  // infinite where a value is, not NaN as mean + delta
        squares += its_squares + delta * delta * (count * more / total);
        count = total;
    }
};

template <class A>
struct Running {
    A *mean, *var;
    A weight, unbiased;

    Running(const Call& call, int64_t values)
        : mean(static_cast<A*>(call.running_mean)),
          var(static_cast<A*>(call.running_var)),
          weight(static_cast<A>(call.momentum)),
          unbiased(static_cast<A>(values / (values - 1.0))) {}

    // `to` moves to `factor` times the batch's, as torch.lerp does it:
    //     running = running + momentum * (batch - running)
    void move(const A* __restrict from, A* __restrict to, int64_t count, A factor) const {
#pragma omp simd
        for (int64_t j = 0; j < count; ++j) {
            const A batch = from[j] * factor;
            to[j] = weight < A(0.5) ? to[j] + weight * (batch - to[j]) : batch - (batch - to[j]) * (1 - weight);
        }
    }
};

// Running statistics (C, locations) of statistics (locations, C), at PLACES locations from `start` on: whole lines of the
// cache of each of LINE channels, which are then read and written once.
constexpr int64_t PLACES = 64, LINE = 16;
template <class A>
void move_transposed(const Call& call, int64_t start) {
    const int64_t places = std::min(PLACES, call.locations - start), channels = call.c / call.locations;
    const Running<A> running(call, call.n);
    A turned[LINE * PLACES];
    for (int64_t c0 = 0; c0 < channels; c0 += LINE)
        for (const bool of_var : {false, true}) {
            const A* from = static_cast<const A*>(of_var ? call.var : call.mean) + start * channels + c0;
            A* to = (of_var ? running.var : running.mean) + c0 * call.locations + start;
            const int64_t some = std::min(LINE, channels - c0);
            for (int64_t i = 0; i < places; ++i)
                for (int64_t j = 0; j < some; ++j) turned[j * PLACES + i] = from[i * channels + j];
            for (int64_t j = 0; j < some; ++j)
                running.move(turned + j * PLACES, to + j * call.locations, places, of_var ? running.unbiased : 1);
        }
}

// Numbers of weight or bias, one for each of `count` statistics from q0 on.
template <class A>
void spread(const Call& call, const A* from, int64_t q0, int64_t count, A* to) {
    const int64_t inner = call.inner, turn = call.parameters;
    if (inner == 1) {
        std::copy_n(from + q0, count, to);
    } else if (inner) {
        for (int64_t q = q0, next; q < q0 + count; q = next) {
            next = std::min(q0 + count, (q / inner + 1) * inner);
            std::fill(to + (q - q0), to + (next - q0), from[q / inner]);
        }
    } else {
        const int64_t start = q0 % turn, some = std::min(count, turn - start);
        std::copy_n(from + start, some, to);
        std::copy_n(from, std::min(count - some, start), to + some);
        for (int64_t done = turn; done < count; done *= 2) std::copy_n(to, std::min(done, count - done), to + done);
    }
}

// Statistics of a tile, of which the first is number q0: what is kept of them and what normalizes by them.
// mean + lost is the mean before its rounding, which goes into the output through its shift:
//     scale = weight / sqrt(var + eps)
//     shift = bias - lost * scale
template <class A>
void finish(const Call& call, int64_t q0, int64_t count, int64_t values, A* __restrict mean, const A* __restrict lost,
            A* __restrict var, A* __restrict scale, A* __restrict shift) {
    const A eps = static_cast<A>(call.eps);
    if (call.weight)
        spread(call, static_cast<const A*>(call.weight), q0, count, scale);
    else
        std::fill_n(scale, count, A(1));
    if (call.bias)
        spread(call, static_cast<const A*>(call.bias), q0, count, shift);
    else
        std::fill_n(shift, count, A(0));
#pragma omp simd
    for (int64_t j = 0; j < count; ++j) {
        scale[j] *= 1 / std::sqrt(var[j] + eps);
        shift[j] -= lost[j] * scale[j];
    }
    std::copy_n(mean, count, static_cast<A*>(call.mean) + q0);
    std::copy_n(var, count, static_cast<A*>(call.var) + q0);
    if (call.shift) std::copy_n(shift, count, static_cast<A*>(call.shift) + q0);
    if (!call.running_mean || call.locations) return;
    const Running<A> running(call, values);
    running.move(mean, running.mean + q0, count, 1);
    running.move(var, running.var + q0, count, running.unbiased);
}

// dx = a * dy + b * (x - mean) + c, the factors being those of function.py that are constant along the statistic.
//     a = weight * rstd
//     b = -a * rstd^2 * mean_S(dy * (x - mean))
//     c = -a * mean_S(dy)
// On entry a is the weight, b the sum of dy * (x - mean) and c that of dy; b leaves in `product` as that of dy * xhat.
template <class A>
inline void factors(A rstd, double values, A& a, A& b, A& c, A& product) {
    const A inverse = static_cast<A>(1 / values);
    product = b * rstd;
    a *= rstd;
    b = -a * (rstd * (product * inverse));  // in this order: rstd^3 may be no float
    c = -a * (c * inverse);
}

// --- rows ---

// Of a row, with what `finish` made:
//     y = (x - mean) * scale + shift
template <class T, bool RELU, class S, class A>
void normalize(const S* __restrict x, T* y, int64_t count, bool past_cache, A mean, A scale, A shift) {
    put(y, count, past_cache, [=](int64_t i) { return activated<RELU>((load(x[i]) - mean) * scale + shift); });
}

// Adds the deviations of a row from a guess of its mean, and their squares; copies the row, if there is where. Of `count`
// values the moments are then
//     mean = guess + first / count
//     var = second / count - (first / count)^2
template <class T, class A>
void add_deviations(const T* __restrict x, int64_t count, A guess, A* __restrict copy, A& first, A& second) {
    A a = 0, b = 0;
    if (copy) {
#pragma omp simd reduction(+ : a, b)
        for (int64_t i = 0; i < count; ++i) {
            copy[i] = load(x[i]);
            const A d = copy[i] - guess;
            a += d;
            b += d * d;
        }
    } else {
#pragma omp simd reduction(+ : a, b)
        for (int64_t i = 0; i < count; ++i) {
            const A d = load(x[i]) - guess;
            a += d;
            b += d * d;
        }
    }
    first += a;
    second += b;
}

template <class T, bool RELU>
void rows_forward(const Call& call) {
    using A = wide<T>;
    const int64_t n = call.n, c = call.c, l = call.l;
    const T* x = static_cast<const T*>(call.x);
    T* y = static_cast<T*>(call.out);
    const bool keep = n * l <= KEEP, large = n * c * l * static_cast<int64_t>(sizeof(T)) >= LARGE;
    const int64_t length = std::min(l, BLOCK), rows = std::max<int64_t>(1, BLOCK / l);
#pragma omp parallel num_threads(threads_for(call, n * c * l))
    {
        A* buffer = scratch<A>(keep ? n * l : 0);
#pragma omp for schedule(static)
        for (int64_t ch = 0; ch < c; ++ch) {
            Moments total;
            A guess = 0;
            for (int64_t j = 0; j < 64; ++j) guess += load(x[ch * l + j * l / 64]) / 64;
            for (int64_t i = 0; i < n; i += rows)
                for (int64_t o = 0; o < l; o += length) {
                    const int64_t size = std::min(length, l - o), end = std::min(i + rows, n);
                    const A count = static_cast<A>((end - i) * size);
                    for (bool again = true;; again = false) {
                        A first = 0, second = 0;
                        for (int64_t r = i; r < end; ++r)
                            add_deviations(x + (r * c + ch) * l + o, size, guess,
                                           keep && again ? buffer + r * l + o : nullptr, first, second);
                        if (!again || !far(first, second, 1 / count)) {
                            total.join(count, guess, first, second);
                            break;
                        }
                        guess += finite_or_zero(first) / count;
                    }
                    guess = static_cast<A>(total.mean);
                }
            A mean = guess, lost = static_cast<A>(finite_or_zero(total.mean - static_cast<double>(mean)));
            A var = static_cast<A>(total.squares / total.count), scale, shift;
            finish(call, ch, 1, n * l, &mean, &lost, &var, &scale, &shift);
            for (int64_t i = 0; i < n; ++i) {
                const int64_t at = (i * c + ch) * l;
                if (keep)
                    normalize<T, RELU>(buffer + i * l, y + at, l, large, mean, scale, shift);
                else
                    normalize<T, RELU>(x + at, y + at, l, large, mean, scale, shift);
            }
        }
        past_cache_done(large);
    }
}

// Adds to the sums of dy and of dy * (x - mean), which are copied if there is where:
//     gradient = sum(dy)
//     product = sum(dy * (x - mean))
template <bool RELU, class T, class A>
void add_products(const T* __restrict x, const T* __restrict dy, int64_t count, A mean, A scale, A shift,
                  A* __restrict xs, A* __restrict gs, double& gradient, double& product) {
    for (int64_t o = 0; o < count; o += BLOCK) {
        const int64_t end = std::min(o + BLOCK, count);
        A g_sum = 0, p_sum = 0;
        if (xs) {
#pragma omp simd reduction(+ : g_sum, p_sum)
            for (int64_t j = o; j < end; ++j) {
                const A d = load(x[j]) - mean, up = load(dy[j]), g = RELU && d * scale + shift <= 0 ? A(0) : up;
                xs[j] = d;
                gs[j] = g;
                g_sum += g;
                p_sum += g * d;
            }
        } else {
#pragma omp simd reduction(+ : g_sum, p_sum)
            for (int64_t j = o; j < end; ++j) {
                const A d = load(x[j]) - mean, up = load(dy[j]), g = RELU && d * scale + shift <= 0 ? A(0) : up;
                g_sum += g;
                p_sum += g * d;
            }
        }
        gradient += g_sum;
        product += p_sum;
    }
}

template <class T, bool RELU>
void rows_backward(const Call& call) {
    using A = wide<T>;
    const int64_t n = call.n, c = call.c, l = call.l;
    const T *x = static_cast<const T*>(call.x), *dy = static_cast<const T*>(call.dy);
    const A *means = static_cast<const A*>(call.mean), *vars = static_cast<const A*>(call.var);
    const A *weight = static_cast<const A*>(call.weight), *shifts = static_cast<const A*>(call.shift);
    T* dx = static_cast<T*>(call.out);
    A *sum_dy = static_cast<A*>(call.sum_dy), *sum_product = static_cast<A*>(call.sum_product);
    const bool keep = dx && n * l <= KEEP / 2, large = n * c * l * static_cast<int64_t>(sizeof(T)) >= LARGE;
#pragma omp parallel num_threads(threads_for(call, n * c * l))
    {
        A* xs = scratch<A>(keep ? 2 * n * l : 0);
        A* gs = keep ? xs + n * l : nullptr;
#pragma omp for schedule(static)
        for (int64_t ch = 0; ch < c; ++ch) {
            const A mu = means[ch], rstd = 1 / std::sqrt(vars[ch] + static_cast<A>(call.eps));
            const A scale = (weight ? weight[ch] : A(1)) * rstd, shift = RELU ? shifts[ch] : A(0);
            double gradient = 0, product = 0;
            for (int64_t i = 0; i < n; ++i)
                add_products<RELU>(x + (i * c + ch) * l, dy + (i * c + ch) * l, l, mu, scale, shift,
                                   keep ? xs + i * l : nullptr, keep ? gs + i * l : nullptr, gradient, product);
            A a = weight ? weight[ch] : 1, b = static_cast<A>(product), k = static_cast<A>(gradient), of_weight;
            if (sum_dy) sum_dy[ch] = k;
            factors(rstd, static_cast<double>(n) * l, a, b, k, of_weight);
            if (sum_product) sum_product[ch] = of_weight;
            if (!dx) continue;
            for (int64_t i = 0; i < n; ++i) {
                T* out = dx + (i * c + ch) * l;
                if (keep) {
                    const A *xo = xs + i * l, *go = gs + i * l;
                    put(out, l, large, [=](int64_t j) { return a * go[j] + (b * xo[j] + k); });
                } else {
                    const T *xi = x + (i * c + ch) * l, *gi = dy + (i * c + ch) * l;
                    put(out, l, large, [=](int64_t j) {
                        const A d = load(xi[j]) - mu, up = load(gi[j]);
                        return a * (RELU && d * scale + shift <= 0 ? A(0) : up) + (b * d + k);
                    });
                }
            }
        }
        past_cache_done(large);
    }
}

// --- columns ---

// How (m, k) is cut: pieces of columns, each of several tiles, and, where a tile is too high to be kept, or all of it too
// large for few tiles, chunks of rows. No statistic, and no parameter that neighbours share, is in two pieces.
struct Cut {
    int64_t k, unit, width, piece, pieces, height, chunks;

    Cut(const Call& call, int64_t buffers) {
        const int64_t m = call.n, room = KEEP / buffers;
        k = call.c;
        unit = call.l;
        const auto whole = [&](int64_t most) { return std::max(unit, most / unit * unit); };
        width = std::min(whole(std::clamp<int64_t>(room / m / 16 * 16, 64, WIDTH)), k);
        height = m;
        if (m * width > room || (k / width < 16 && m * k > 8 * room)) {
            width = std::min(whole(WIDTH), k);
            const int64_t wanted = std::max<int64_t>(1, CHUNKS * width / k);
            height = std::max<int64_t>(32, (m + wanted - 1) / wanted);
        }
        chunks = (m + height - 1) / height;
        piece = width;
        if (call.inner > 1) {
            piece = std::max(call.inner, width / call.inner * call.inner);
            const int64_t tiles = (piece + width - 1) / width;
            width = std::min(width, ((piece + tiles - 1) / tiles + 15) / 16 * 16);
        } else if (call.inner == 0) {
            if (call.parameters <= width) width = width / call.parameters * call.parameters;
            const int64_t groups = std::clamp<int64_t>(k / call.parameters / 8, 1, CHUNKS);
            piece = std::max(width, (k / width + groups - 1) / groups * width);
        }
        pieces = (k + piece - 1) / piece;
    }
    // Calls `tile(c0, width)` for each tile of a piece.
    template <class Tile>
    void tiles(int64_t which, Tile tile) const {
        const int64_t end = std::min(k, (which + 1) * piece);
        for (int64_t c0 = which * piece; c0 < end; c0 += width) tile(c0, std::min(width, end - c0));
    }
};

// Of each `fold` neighbours their sum.
template <class A>
void fold_up(A* values, int64_t width, int64_t fold) {
    if (fold == 1) return;
    for (int64_t q = 0; q < width / fold; ++q) {
        A sum = 0;
        for (int64_t j = 0; j < fold; ++j) sum += values[q * fold + j];
        values[q] = sum;
    }
}

// The reverse: each value `fold` times.
template <class A>
void unfold(A* values, int64_t width, int64_t fold) {
    if (fold == 1) return;
    for (int64_t q = width / fold; q-- > 0;) std::fill_n(values + q * fold, fold, values[q]);
}

// The mean of some values of each statistic.
template <class T, class A>
void first_guess(const T* x, int64_t k, int64_t rows, int64_t width, int64_t fold, A* __restrict guess) {
    const int64_t some = rows < 16 ? 1 : 4;
    std::fill_n(guess, width, A(0));
    for (int64_t i = 0; i < some; ++i) {
        const T* __restrict from = x + i * k;
#pragma omp simd
        for (int64_t j = 0; j < width; ++j) guess[j] += load(from[j]);
    }
    fold_up(guess, width, fold);
    for (int64_t q = 0; q < width / fold; ++q) guess[q] /= static_cast<A>(some * fold);
    unfold(guess, width, fold);
}

// Adds the deviations of ROWS rows, and their squares; copies the rows, if COPY.
template <int ROWS, bool COPY, class T, class A>
void add_deviations(const T* __restrict x, int64_t k, int64_t width, const A* __restrict guess, A* __restrict copy,
                    A* __restrict first, A* __restrict second) {
#pragma omp simd
    for (int64_t j = 0; j < width; ++j) {
        A sum = 0, squares = 0;
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; ++r) {
            const A value = load(x[r * k + j]), d = value - guess[j];
            if (COPY) copy[r * width + j] = value;
            sum += d;
            squares += d * d;
        }
        first[j] += sum;
        second[j] += squares;
    }
}

template <bool COPY, class T, class A>
void column_deviations(const T* x, int64_t k, int64_t rows, int64_t width, const A* guess, A* copy, A* first,
                       A* second) {
    std::fill_n(first, width, A(0));
    std::fill_n(second, width, A(0));
    int64_t i = 0;
    for (; i + 4 <= rows; i += 4)
        add_deviations<4, COPY>(x + i * k, k, width, guess, COPY ? copy + i * width : nullptr, first, second);
    for (; i < rows; ++i)
        add_deviations<1, COPY>(x + i * k, k, width, guess, COPY ? copy + i * width : nullptr, first, second);
}

// Moments of rows of a tile about `guess`, which is one number a column, and made better where it must be. They leave as
// one number a statistic.
template <class T, class A>
void block_moments(const T* x, int64_t k, int64_t rows, int64_t width, int64_t fold, A* guess, A* copy, A* first,
                   A* second) {
    const A count = static_cast<A>(rows * fold), inverse = 1 / count;
    const int64_t statistics = width / fold;
    for (bool again = true;; again = false) {
        if (copy && again)
            column_deviations<true>(x, k, rows, width, guess, copy, first, second);
        else
            column_deviations<false>(x, k, rows, width, guess, copy, first, second);
        fold_up(first, width, fold);
        fold_up(second, width, fold);
        int any = 0;
#pragma omp simd reduction(| : any)
        for (int64_t q = 0; q < statistics; ++q) any |= far(first[q], second[q], inverse);
        if (!again || !any) return;
        for (int64_t q = 0; q < statistics; ++q)
            std::fill_n(guess + q * fold, fold, guess[q * fold] + finite_or_zero(first[q]) / count);
    }
}

// The same of any number of rows, joined: to `total`, one a statistic.
template <class T>
void column_moments(const T* x, int64_t k, int64_t rows, int64_t width, int64_t fold, wide<T>* copy, Moments* total) {
    using A = wide<T>;
    A guess[ROOM], first[ROOM], second[ROOM];
    first_guess(x, k, rows, width, fold, guess);
    for (int64_t r = 0; r < rows; r += HEIGHT) {
        const int64_t height = std::min(HEIGHT, rows - r);
        block_moments(x + r * k, k, height, width, fold, guess, copy ? copy + r * width : nullptr, first, second);
        for (int64_t q = 0; q < width / fold; ++q) {
            total[q].join(height * fold, guess[q * fold], first[q], second[q]);
            std::fill_n(guess + q * fold, fold, static_cast<A>(total[q].mean));
        }
    }
}

template <class A>
struct Tile {
    A mean[ROOM], lost[ROOM], var[ROOM], scale[ROOM], shift[ROOM];

    // From moments of one block.
    void take(const A* __restrict guess, const A* __restrict first, const A* __restrict second, int64_t count,
              int64_t fold, int64_t values) {
        const A inverse = 1 / static_cast<A>(values);
        if (fold == 1) {
#pragma omp simd
            for (int64_t q = 0; q < count; ++q) take(q, guess[q], first[q], second[q], inverse);
        } else {
            for (int64_t q = 0; q < count; ++q) take(q, guess[q * fold], first[q], second[q], inverse);
        }
    }
    void take(int64_t q, A guess, A first, A second, A inverse) {
        const A off = finite_or_zero(first * inverse);
        mean[q] = guess + off;
        lost[q] = finite_or_zero((guess - mean[q]) + off);
        var[q] = not_negative(second * inverse - finite_or_zero(off * off)) + nan_unless_finite(first);
    }
    void take(const Moments* total, int64_t count) {
        for (int64_t q = 0; q < count; ++q) {
            mean[q] = static_cast<A>(total[q].mean);
            lost[q] = static_cast<A>(finite_or_zero(total[q].mean - static_cast<double>(mean[q])));
            var[q] = static_cast<A>(total[q].squares / total[q].count);
        }
    }
    void finish(const Call& call, int64_t c0, int64_t width) {
        const int64_t fold = call.l;
        ::finish(call, c0 / fold, width / fold, call.n * fold, mean, lost, var, scale, shift);
        for (A* each : {mean, scale, shift}) unfold(each, width, fold);
    }
};

template <bool RELU, class S, class T, class A>
void normalise_columns(const S* x, int64_t x_stride, T* y, int64_t y_stride, int64_t rows, int64_t width, bool large,
                       const A* mean, const A* scale, const A* shift) {
    for (int64_t i = 0; i < rows; ++i) {
        const S* from = x + i * x_stride;
        put(y + i * y_stride, width, large,
            [=](int64_t j) { return activated<RELU>((load(from[j]) - mean[j]) * scale[j] + shift[j]); });
    }
}

template <class T, bool RELU>
void columns_forward(const Call& call) {
    using A = wide<T>;
    const int64_t m = call.n, k = call.c, fold = call.l;
    const T* x = static_cast<const T*>(call.x);
    T* y = static_cast<T*>(call.out);
    const Cut cut(call, 1);
    const bool whole = cut.chunks == 1, keep = whole && m > 8 && m * cut.width <= KEEP;
    const bool large = whole && m * k * static_cast<int64_t>(sizeof(T)) >= LARGE;
    std::vector<Moments> parts(whole ? 0 : cut.chunks * (k / fold));
    std::vector<A> factors(whole ? 0 : 3 * k);  // mean, scale and shift of each column
    A *means = factors.data(), *scales = means + k, *shifts = scales + k;
#pragma omp parallel num_threads(threads_for(call, m * k))
    {
        A* buffer = keep ? scratch<A>(m * cut.width) : nullptr;
        Tile<A> tile;
#pragma omp for schedule(static)
        for (int64_t piece = 0; piece < cut.pieces * cut.chunks; ++piece) {
            const int64_t chunk = piece / cut.pieces, r0 = chunk * cut.height, rows = std::min(cut.height, m - r0);
            cut.tiles(piece % cut.pieces, [&](int64_t c0, int64_t width) {
                const T* from = x + r0 * k + c0;
                if (!whole) return column_moments<T>(from, k, rows, width, fold, nullptr, &parts[(chunk * k + c0) / fold]);
                if (m <= HEIGHT) {
                    A guess[ROOM], first[ROOM], second[ROOM];
                    first_guess(from, k, m, width, fold, guess);
                    block_moments(from, k, m, width, fold, guess, buffer, first, second);
                    tile.take(guess, first, second, width / fold, fold, m * fold);
                } else {
                    Moments total[WIDTH];
                    column_moments<T>(from, k, m, width, fold, buffer, total);
                    tile.take(total, width / fold);
                }
                tile.finish(call, c0, width);
                if (keep)
                    normalise_columns<RELU>(buffer, width, y + c0, k, m, width, large, tile.mean, tile.scale, tile.shift);
                else
                    normalise_columns<RELU>(from, k, y + c0, k, m, width, large, tile.mean, tile.scale, tile.shift);
            });
        }
        if (!whole) {
#pragma omp for schedule(static)
            for (int64_t piece = 0; piece < cut.pieces; ++piece)
                cut.tiles(piece, [&](int64_t c0, int64_t width) {
                    Moments* total = &parts[c0 / fold];
                    for (int64_t chunk = 1; chunk < cut.chunks; ++chunk)
                        for (int64_t q = 0; q < width / fold; ++q) {
                            const Moments& more = parts[(chunk * k + c0) / fold + q];
                            total[q].join(more.count, more.mean, more.squares);
                        }
                    tile.take(total, width / fold);
                    tile.finish(call, c0, width);
                    std::copy_n(tile.mean, width, means + c0);
                    std::copy_n(tile.scale, width, scales + c0);
                    std::copy_n(tile.shift, width, shifts + c0);
                });
#pragma omp for schedule(static)
            for (int64_t piece = cut.pieces * cut.chunks - 1; piece >= 0; --piece) {  // the last is still in the cache
                const int64_t r0 = piece / cut.pieces * cut.height, rows = std::min(cut.height, m - r0);
                cut.tiles(piece % cut.pieces, [&](int64_t c0, int64_t width) {
                    normalise_columns<RELU>(x + r0 * k + c0, k, y + r0 * k + c0, k, rows, width, false, means + c0,
                                            scales + c0, shifts + c0);
                });
            }
        }
        past_cache_done(large);
        if (call.locations && call.running_mean) {
#pragma omp for schedule(static)
            for (int64_t start = 0; start < call.locations; start += PLACES) move_transposed<A>(call, start);
        }
    }
}

// What a tile's backward is computed with: of each column the mean, what finds the ReLU's mask, and the factors.
template <class A>
struct BackwardTile {
    A mean[ROOM], rstd[ROOM], scale[ROOM], shift[ROOM], a[ROOM], b[ROOM], c[ROOM];

    BackwardTile() {}
    void prepare(const Call& call, int64_t c0, int64_t width) {
        const int64_t fold = call.l, q0 = c0 / fold, count = width / fold;
        const A* var = static_cast<const A*>(call.var) + q0;
        std::copy_n(static_cast<const A*>(call.mean) + q0, count, mean);
        if (call.weight)
            spread(call, static_cast<const A*>(call.weight), q0, count, a);
        else
            std::fill_n(a, count, A(1));
#pragma omp simd
        for (int64_t q = 0; q < count; ++q) {
            rstd[q] = 1 / std::sqrt(var[q] + static_cast<A>(call.eps));
            scale[q] = a[q] * rstd[q];
        }
        unfold(mean, width, fold);
        if (!call.relu) return;
        std::copy_n(static_cast<const A*>(call.shift) + q0, count, shift);
        unfold(shift, width, fold);
        unfold(scale, width, fold);
    }
    // From b and c, the sums of dy * (x - mean) and of dy of each column. `sums` are those of parameters, if those are
    // not one a statistic.
    void finish(const Call& call, int64_t c0, int64_t width, double* sums) {
        const int64_t fold = call.l, q0 = c0 / fold, count = width / fold;
        fold_up(b, width, fold);
        fold_up(c, width, fold);
        A *sum_dy = static_cast<A*>(call.sum_dy), *sum_product = static_cast<A*>(call.sum_product);
        if (sum_dy && call.inner == 1) std::copy_n(c, count, sum_dy + q0);
        A product[WIDTH];
        if (sum_dy && call.inner != 1) {
            std::copy_n(c, count, product);
            gather(call, q0, count, product, sums);
        }
        const double values = static_cast<double>(call.n) * fold;
#pragma omp simd
        for (int64_t q = 0; q < count; ++q) factors(rstd[q], values, a[q], b[q], c[q], product[q]);
        if (sum_dy && call.inner == 1) std::copy_n(product, count, sum_product + q0);
        if (sum_dy && call.inner != 1) gather(call, q0, count, product, sums + call.parameters);
        for (A* each : {a, b, c}) unfold(each, width, fold);
    }
    // The reverse of `spread`: adds to the sums of parameters. `values` may be changed.
    static void gather(const Call& call, int64_t q0, int64_t count, A* __restrict values, double* __restrict to) {
        const int64_t inner = call.inner, turn = call.parameters;
        if (inner) {
            for (int64_t q = q0, next; q < q0 + count; q = next) {
                next = std::min(q0 + count, (q / inner + 1) * inner);
                A sum = 0;
#pragma omp simd reduction(+ : sum)
                for (int64_t j = q - q0; j < next - q0; ++j) sum += values[j];
                to[q / inner] += sum;
            }
            return;
        }
        if (q0 % turn == 0)
            for (; count >= 2 * turn; count -= count / turn / 2 * turn) {  // the last half of the turns is added
                const int64_t half = count / turn / 2 * turn;
                A* rest = values + count - half;
#pragma omp simd
                for (int64_t j = 0; j < half; ++j) values[j] += rest[j];
            }
        for (int64_t j = 0; j < count; ++j) to[(q0 + j) % turn] += values[j];
    }
};

// Adds the sums of dy and dy * (x - mean) of ROWS rows; copies dy, masked, and x - mean, if COPY.
template <int ROWS, bool COPY, bool RELU, class T, class A>
void add_products(const T* __restrict x, const T* __restrict dy, int64_t k, int64_t width, const A* __restrict mean,
                  const A* __restrict scale, const A* __restrict shift, A* __restrict xs, A* __restrict gs,
                  A* __restrict gradient, A* __restrict product) {
#pragma omp simd
    for (int64_t j = 0; j < width; ++j) {
        A g_sum = 0, p_sum = 0;
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; ++r) {
            const A d = load(x[r * k + j]) - mean[j], up = load(dy[r * k + j]);
            const A g = RELU && d * scale[j] + shift[j] <= 0 ? A(0) : up;
            if (COPY) xs[r * width + j] = d;
            if (COPY) gs[r * width + j] = g;
            g_sum += g;
            p_sum += g * d;
        }
        gradient[j] += g_sum;
        product[j] += p_sum;
    }
}

template <bool COPY, bool RELU, class T, class A>
void block_products(const T* x, const T* dy, int64_t k, int64_t rows, int64_t width, BackwardTile<A>& tile, A* xs, A* gs) {
    std::fill_n(tile.b, width, A(0));
    std::fill_n(tile.c, width, A(0));
    int64_t i = 0;
    const auto add = [&](auto with) {
        const int64_t at = COPY ? i * width : 0;
        for (int r = 0; RELU && r < decltype(with)::value; ++r) ask_for(dy + (i + r) * k, width);
        add_products<decltype(with)::value, COPY, RELU>(x + i * k, dy + i * k, k, width, tile.mean, tile.scale,
                                                        tile.shift, xs + at, gs + at, tile.c, tile.b);
    };
    for (; i + 4 <= rows; i += 4) add(std::integral_constant<int, 4>());
    for (; i < rows; ++i) add(std::integral_constant<int, 1>());
}

template <class T, bool RELU>
void columns_backward(const Call& call) {
    using A = wide<T>;
    const int64_t m = call.n, k = call.c;
    const T *x = static_cast<const T*>(call.x), *dy = static_cast<const T*>(call.dy);
    T* dx = static_cast<T*>(call.out);
    const Cut cut(call, 2);
    const bool whole = cut.chunks == 1, large = whole && m * k * static_cast<int64_t>(sizeof(T)) >= LARGE;
    const bool keep = dx && whole && m > 8 && 2 * m * cut.width <= KEEP;
    std::vector<double> parts(whole ? 0 : 2 * cut.chunks * k);
    std::vector<double> sums(call.inner == 1 ? 0 : 2 * call.parameters * (call.inner ? 1 : cut.pieces));
    std::vector<BackwardTile<A>> tiles(whole ? 0 : (k + cut.width - 1) / cut.width + cut.pieces);
    const auto sums_of = [&](int64_t piece) { return sums.data() + (call.inner ? 0 : 2 * call.parameters * piece); };
    const auto write = [&](const BackwardTile<A>& tile, int64_t r0, int64_t r1, int64_t c0, int64_t width) {
        for (int64_t i = r0; i < r1; ++i) {
            const T *xi = x + i * k + c0, *gi = dy + i * k + c0;
            if (RELU) ask_for(gi, width);
            put(dx + i * k + c0, width, large, [&, xi, gi](int64_t j) {
                const A d = load(xi[j]) - tile.mean[j], up = load(gi[j]);
                const A g = RELU && d * tile.scale[j] + tile.shift[j] <= 0 ? A(0) : up;
                return tile.a[j] * g + (tile.b[j] * d + tile.c[j]);
            });
        }
    };
#pragma omp parallel num_threads(threads_for(call, m * k))
    {
        A* xs = scratch<A>(keep ? 2 * m * cut.width : 1);
        A* gs = xs + (keep ? m * cut.width : 0);
        BackwardTile<A> own;
#pragma omp for schedule(static)
        for (int64_t piece = 0; piece < cut.pieces * cut.chunks; ++piece) {
            const int64_t chunk = piece / cut.pieces, r0 = chunk * cut.height, r1 = std::min(r0 + cut.height, m);
            cut.tiles(piece % cut.pieces, [&](int64_t c0, int64_t width) {
                own.prepare(call, c0, width);
                if (keep) {
                    block_products<true, RELU>(x + c0, dy + c0, k, m, width, own, xs, gs);
                } else {
                    double gradient[WIDTH] = {}, product[WIDTH] = {};
                    for (int64_t r = r0; r < r1; r += HEIGHT) {
                        block_products<false, RELU>(x + r * k + c0, dy + r * k + c0, k, std::min(HEIGHT, r1 - r), width, own,
                                                    xs, gs);
                        if (whole && r1 - r0 <= HEIGHT) break;
                        for (int64_t j = 0; j < width; ++j) {
                            gradient[j] += own.c[j];
                            product[j] += own.b[j];
                        }
                    }
                    if (!whole) {
                        std::copy_n(gradient, width, &parts[2 * chunk * k + c0]);
                        std::copy_n(product, width, &parts[(2 * chunk + 1) * k + c0]);
                        return;
                    }
                    if (m > HEIGHT) {
                        std::copy_n(gradient, width, own.c);
                        std::copy_n(product, width, own.b);
                    }
                }
                own.finish(call, c0, width, sums_of(piece));
                if (!dx) return;
                if (!keep) return write(own, r0, r1, c0, width);
                for (int64_t i = 0; i < m; ++i) {
                    const A *xo = xs + i * width, *go = gs + i * width;
                    put(dx + i * k + c0, width, large,
                        [&, xo, go](int64_t j) { return own.a[j] * go[j] + (own.b[j] * xo[j] + own.c[j]); });
                }
            });
        }
        if (!whole) {
            const auto tile_at = [&](int64_t piece, int64_t c0) -> BackwardTile<A>& { return tiles[c0 / cut.width + piece]; };
#pragma omp for schedule(static)
            for (int64_t piece = 0; piece < cut.pieces; ++piece)
                cut.tiles(piece, [&](int64_t c0, int64_t width) {
                    BackwardTile<A>& tile = tile_at(piece, c0);
                    tile.prepare(call, c0, width);
                    for (int64_t j = 0; j < width; ++j) {
                        double gradient = 0, product = 0;
                        for (int64_t chunk = 0; chunk < cut.chunks; ++chunk) {
                            gradient += parts[2 * chunk * k + c0 + j];
                            product += parts[(2 * chunk + 1) * k + c0 + j];
                        }
                        tile.c[j] = static_cast<A>(gradient);
                        tile.b[j] = static_cast<A>(product);
                    }
                    tile.finish(call, c0, width, sums_of(piece));
                });
            if (dx) {
#pragma omp for schedule(static)
                for (int64_t piece = cut.pieces * cut.chunks - 1; piece >= 0; --piece) {
                    const int64_t which = piece % cut.pieces, r0 = piece / cut.pieces * cut.height;
                    cut.tiles(which, [&](int64_t c0, int64_t width) {
                        write(tile_at(which, c0), r0, std::min(r0 + cut.height, m), c0, width);
                    });
                }
            }
        }
        past_cache_done(large);
    }
    if (call.sum_dy && call.inner != 1)
        for (int64_t p = 0; p < call.parameters; ++p)
            for (int64_t which = 0; which < 2; ++which) {
                double total = 0;
                for (int64_t at = which * call.parameters + p; at < static_cast<int64_t>(sums.size());
                     at += 2 * call.parameters)
                    total += sums[at];
                static_cast<A*>(which ? call.sum_product : call.sum_dy)[p] = static_cast<A>(total);
            }
}

}  // namespace

#define EXPORT(NAME, T)                                                                 \
    extern "C" void rows_forward_##NAME(const Call* call) {                             \
        if (call->batches) ++*call->batches;                                            \
        (call->relu ? rows_forward<T, true> : rows_forward<T, false>)(*call);           \
    }                                                                                   \
    extern "C" void rows_backward_##NAME(const Call* call) {                            \
        (call->relu ? rows_backward<T, true> : rows_backward<T, false>)(*call);         \
    }                                                                                   \
    extern "C" void columns_forward_##NAME(const Call* call) {                          \
        if (call->batches) ++*call->batches;                                            \
        (call->relu ? columns_forward<T, true> : columns_forward<T, false>)(*call);     \
    }                                                                                   \
    extern "C" void columns_backward_##NAME(const Call* call) {                         \
        (call->relu ? columns_backward<T, true> : columns_backward<T, false>)(*call);   \
    }

EXPORT(float32, float)
EXPORT(float64, double)
EXPORT(bfloat16, bfloat16)
