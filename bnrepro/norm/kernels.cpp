// The formulas of function.py for the CPU, with each value read from memory as seldom as can be.
//
// function.py is the source of truth and says what is computed; the tests hold these loops to it. What is added here
// is order. A tensor is seen in one of two ways:
//   rows     (n, c, l): one statistic for each of c channels, over n and l. A contiguous (N, C, H, W).
//   columns  (m, k):    one statistic for each of k columns, over m. Channels-last, (N, C), and local statistics,
//                       where k = C*H*W.
// One channel (or a tile of columns) at a time is copied into a buffer that fits the cache, so that all passes but the
// first stay out of memory. Means and sums of squares of blocks are joined as by Chan, Golub & LeVeque (1983), in
// double; nothing is ever subtracted from a sum of squares but the rounding of the mean, and where that rounding is as
// large as the spread (constants of 1e7) the deviations are taken again from a better mean. How the work is cut
// depends on the shape alone, so that the number of threads does not change a bit of the result.
//
// Forward fills mean and var (biased); backward fills sum_dy and sum_dy_xhat, which are the gradients of bias and
// weight. weight and bias hold one number a statistic, or are null.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

namespace {

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

constexpr int64_t BLOCK = 8192;    // values whose moments are taken at once: they stay in the first-level cache
constexpr int64_t KEEP = 1 << 16;  // values of a buffer: a quarter of a megabyte of floats
constexpr int64_t WIDTH = 256;     // columns of a tile where rows are cut into chunks
constexpr int64_t CHUNKS = 32;     // at most, of rows

template <class A>
A* scratch(int64_t count) {
    static thread_local std::vector<A> buffer;
    if (static_cast<int64_t>(buffer.size()) < count) buffer.resize(count);
    return buffer.data();
}

inline double finite_or_zero(double v) { return std::abs(v) <= std::numeric_limits<double>::max() ? v : 0.0; }
inline double not_negative(double v) { return v < 0 ? 0.0 : v; }  // and NaN where it is NaN

// Whether deviations from a guess of the mean are for no small part its error, which is more than its last digits.
template <class A>
inline bool far(A first, A second, A count, A guess) {
    const A digits = 16 * std::numeric_limits<A>::epsilon() * count;
    return (4 * first * first > second * count) & (std::abs(first) > digits * std::abs(guess));
}

// Whether that is so in any of `width` columns. Seldom is any suspicious, so that the rest of the test is seldom made.
template <class A>
bool any_far(const A* first, const A* second, int64_t width, A count, const A* guess) {
    int suspicious = 0;
#pragma omp simd reduction(| : suspicious)
    for (int64_t j = 0; j < width; ++j) suspicious |= 4 * first[j] * first[j] > second[j] * count;
    if (suspicious)
        for (int64_t j = 0; j < width; ++j)
            if (far(first[j], second[j], count, guess[j])) return true;
    return false;
}

// The mean in double goes into an output through its shift, where its rounding to A would be too much.
template <class A>
A shifted(A bias, double mean, A rounded, A scale) {
    return bias - static_cast<A>(finite_or_zero(mean - static_cast<double>(rounded))) * scale;
}

// Count, mean and sum of squared deviations, and how two of them join.
struct Moments {
    double count = 0, mean = 0, squares = 0;

    void join(double more, double its_mean, double its_squares) {
        const double total = count + more, delta = its_mean - mean;
        mean = (count * mean + more * its_mean) / total;  // infinite where a value is, not NaN as mean + delta
        squares += its_squares + delta * delta * (count * more / total);
        count = total;
    }
};

template <class A>
Moments moments_of(const A* __restrict x, int64_t count) {
    A sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < count; ++i) sum += x[i];
    A guess = sum / static_cast<A>(count);
    for (bool again = true;; again = false) {
        A first = 0, second = 0;  // the first moment about the guess is its rounding
#pragma omp simd reduction(+ : first, second)
        for (int64_t i = 0; i < count; ++i) {
            const A d = x[i] - guess;
            first += d;
            second += d * d;
        }
        const double off = finite_or_zero(first) / count, mean = static_cast<double>(guess) + off;
        if (!again || !far(first, second, static_cast<A>(count), guess))
            return {static_cast<double>(count), mean, not_negative(second - off * off * count)};
        guess = static_cast<A>(mean);
    }
}

template <class T>
void copy(const T* __restrict x, wide<T>* __restrict to, int64_t count) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) to[i] = load(x[i]);
}

template <class S, class T, class A>
void normalise(const S* __restrict x, T* __restrict y, int64_t count, A mean, A scale, A shift) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) store(y + i, (load(x[i]) - mean) * scale + shift);
}

// LENGTH is l where it is known when this is compiled (a short loop is then unrolled), else 0.
template <class T, int64_t LENGTH>
void rows_forward(const T* x, const wide<T>* weight, const wide<T>* bias, T* y, wide<T>* mean, wide<T>* var, int64_t n,
                  int64_t c, int64_t any_length, double eps, int threads) {
    using A = wide<T>;
    const int64_t l = LENGTH ? LENGTH : any_length;
    const bool keep = n * l <= KEEP;
    const int64_t length = std::min(l, BLOCK), rows = std::max<int64_t>(1, BLOCK / l);
#pragma omp parallel num_threads(threads)
    {
        A* buffer = scratch<A>(keep ? n * l : BLOCK);
#pragma omp for schedule(static)
        for (int64_t ch = 0; ch < c; ++ch) {
            Moments total;
            A* to = buffer;
            for (int64_t i = 0; i < n; i += rows)
                for (int64_t o = 0; o < l; o += length) {
                    const int64_t size = LENGTH ? LENGTH : std::min(length, l - o), end = std::min(i + rows, n);
                    for (int64_t r = i; r < end; ++r) copy(x + (r * c + ch) * l + o, to + (r - i) * size, size);
                    const Moments part = moments_of(to, (end - i) * size);
                    total.join(part.count, part.mean, part.squares);
                    if (keep) to += (end - i) * size;
                }
            const double variance = total.squares / total.count;
            mean[ch] = static_cast<A>(total.mean);
            var[ch] = static_cast<A>(variance);
            const A rstd = 1 / std::sqrt(var[ch] + static_cast<A>(eps));
            const A scale = weight ? rstd * weight[ch] : rstd;
            const A shift = shifted<A>(bias ? bias[ch] : 0, total.mean, mean[ch], scale);
            for (int64_t i = 0; i < n; ++i) {
                T* out = y + (i * c + ch) * l;
                if (keep)
                    normalise(buffer + i * l, out, l, mean[ch], scale, shift);
                else
                    normalise(x + (i * c + ch) * l, out, l, mean[ch], scale, shift);
            }
        }
    }
}

// dx = a * dy + b * (x - mean) + c, the factors being those of function.py that are constant along the statistic.
template <class A>
struct Factors {
    A a, b, c;

    Factors(A rstd, A weight, double sum_dy, double sum_product, double count) {
        a = rstd * weight;
        b = static_cast<A>(-static_cast<double>(a) * rstd * rstd * (sum_product / count));  // rstd^3 may be no float
        c = static_cast<A>(-a * (sum_dy / count));
    }
};

// Adds to the sums of dy and of dy * (x - mean).
template <class T, class A>
void add_products(const T* __restrict x, const T* __restrict dy, int64_t count, A mean, double& gradient,
                  double& product) {
    for (int64_t o = 0; o < count; o += BLOCK) {
        const int64_t end = std::min(o + BLOCK, count);
        A g_sum = 0, p_sum = 0;
#pragma omp simd reduction(+ : g_sum, p_sum)
        for (int64_t j = o; j < end; ++j) {
            const A g = load(dy[j]);
            g_sum += g;
            p_sum += g * (load(x[j]) - mean);
        }
        gradient += g_sum;
        product += p_sum;
    }
}

template <class T, int64_t LENGTH>
void rows_backward(const T* x, const T* dy, const wide<T>* weight, const wide<T>* mean, const wide<T>* var, T* dx,
                   wide<T>* sum_dy, wide<T>* sum_dy_xhat, int64_t n, int64_t c, int64_t any_length, double eps,
                   int threads) {
    using A = wide<T>;
    const int64_t l = LENGTH ? LENGTH : any_length;
    const bool keep = dx && n * l <= KEEP;
#pragma omp parallel num_threads(threads)
    {
        A* xs = scratch<A>(keep ? 2 * n * l : 0);
        A* gs = keep ? xs + n * l : nullptr;
#pragma omp for schedule(static)
        for (int64_t ch = 0; ch < c; ++ch) {
            const A mu = mean[ch], rstd = 1 / std::sqrt(var[ch] + static_cast<A>(eps));
            double gradient = 0, product = 0;
            if (keep) {
                for (int64_t i = 0; i < n; ++i) {
                    copy(x + (i * c + ch) * l, xs + i * l, l);
                    copy(dy + (i * c + ch) * l, gs + i * l, l);
                }
                add_products(xs, gs, n * l, mu, gradient, product);
            } else {
                for (int64_t i = 0; i < n; ++i)
                    add_products(x + (i * c + ch) * l, dy + (i * c + ch) * l, l, mu, gradient, product);
            }
            sum_dy[ch] = static_cast<A>(gradient);
            sum_dy_xhat[ch] = static_cast<A>(product * rstd);
            if (!dx) continue;
            const Factors<A> f(rstd, weight ? weight[ch] : 1, gradient, product, static_cast<double>(n) * l);
            for (int64_t i = 0; i < n; ++i) {
                T* __restrict out = dx + (i * c + ch) * l;
                if (keep) {
                    const A* __restrict xo = xs + i * l;
                    const A* __restrict go = gs + i * l;
#pragma omp simd
                    for (int64_t j = 0; j < l; ++j) store(out + j, f.a * go[j] + (f.b * (xo[j] - mu) + f.c));
                } else {
                    const T* __restrict xi = x + (i * c + ch) * l;
                    const T* __restrict gi = dy + (i * c + ch) * l;
#pragma omp simd
                    for (int64_t j = 0; j < l; ++j)
                        store(out + j, f.a * load(gi[j]) + (f.b * (load(xi[j]) - mu) + f.c));
                }
            }
        }
    }
}

// How (m, k) is cut: tiles of columns, and, where those are few, chunks of rows.
struct Cut {
    int64_t width, tiles, height, chunks;

    Cut(int64_t m, int64_t k, int64_t buffers) {
        width = std::clamp<int64_t>(KEEP / buffers / m / 16 * 16, 64, 1024);
        tiles = (k + width - 1) / width;
        height = m;
        if (tiles < CHUNKS || m * width > KEEP / buffers) {
            width = std::min(k, WIDTH);
            tiles = (k + width - 1) / width;
            const int64_t wanted = std::max<int64_t>(1, CHUNKS / tiles);
            height = std::max<int64_t>(32, (m + wanted - 1) / wanted);
        }
        chunks = (m + height - 1) / height;
    }
};

// Mean and sum of squares of each of `width` columns of rows r0 to r1, in blocks whose copies stay in the cache.
// `buffer` takes the copies: of all rows if `keep`, else of one block.
template <class T>
void column_moments(const T* x, int64_t k, int64_t r0, int64_t r1, int64_t width, bool keep, wide<T>* buffer,
                    double* __restrict mean, double* __restrict squares) {
    using A = wide<T>;
    const int64_t rows = std::max<int64_t>(8, BLOCK / width);
    A guess[1024], first[1024], second[1024];
    for (int64_t r = r0; r < r1; r += rows) {
        const int64_t end = std::min(r + rows, r1);
        const A count = static_cast<A>(end - r);
        A* to = keep ? buffer + (r - r0) * width : buffer;
        std::fill_n(guess, width, A(0));
        std::fill_n(first, width, A(0));
        std::fill_n(second, width, A(0));
        for (int64_t i = r; i < end; ++i) {
            const T* __restrict from = x + i * k;
            A* __restrict copy = to + (i - r) * width;
#pragma omp simd
            for (int64_t j = 0; j < width; ++j) {
                copy[j] = load(from[j]);
                guess[j] += copy[j];
            }
        }
        for (int64_t j = 0; j < width; ++j) guess[j] /= count;
        const double before = static_cast<double>(r - r0), more = count, total = before + more;
        for (bool again = true;; again = false) {
            for (int64_t i = r; i < end; ++i) {
                const A* __restrict copy = to + (i - r) * width;
#pragma omp simd
                for (int64_t j = 0; j < width; ++j) {
                    const A d = copy[j] - guess[j];
                    first[j] += d;
                    second[j] += d * d;
                }
            }
            if (!again || !any_far(first, second, width, count, guess)) break;
            for (int64_t j = 0; j < width; ++j)
                guess[j] = static_cast<A>(guess[j] + finite_or_zero(first[j]) / more);
            std::fill_n(first, width, A(0));
            std::fill_n(second, width, A(0));
        }
#pragma omp simd
        for (int64_t j = 0; j < width; ++j) {
            const double off = finite_or_zero(first[j]) / more, its_mean = guess[j] + off, delta = its_mean - mean[j];
            mean[j] = (before * mean[j] + more * its_mean) / total;
            squares[j] += not_negative(second[j] - off * off * more) + delta * delta * (before * more / total);
        }
    }
}

template <class S, class T, class A>
void normalise_columns(const S* x, int64_t x_stride, T* y, int64_t y_stride, int64_t rows, int64_t width, const A* mean,
                       const A* scale, const A* shift) {
    for (int64_t i = 0; i < rows; ++i) {
        const S* __restrict from = x + i * x_stride;
        T* __restrict to = y + i * y_stride;
#pragma omp simd
        for (int64_t j = 0; j < width; ++j) store(to + j, (load(from[j]) - mean[j]) * scale[j] + shift[j]);
    }
}

// mean and var of a tile from its moments, and what normalises it.
template <class A>
void finish_columns(const double* means, const double* squares, int64_t m, int64_t width, const A* weight, const A* bias,
                    double eps, A* mean, A* var, A* scale, A* shift) {
    int rounded = 0;  // means of which more than the last digits of an output would be lost
    for (int64_t j = 0; j < width; ++j) {
        mean[j] = static_cast<A>(means[j]);
        var[j] = static_cast<A>(squares[j] / m);
        const A rstd = 1 / std::sqrt(var[j] + static_cast<A>(eps));
        scale[j] = weight ? rstd * weight[j] : rstd;
        shift[j] = bias ? bias[j] : 0;
        rounded |= mean[j] * mean[j] > 256 * var[j];
    }
    if (rounded)
        for (int64_t j = 0; j < width; ++j) shift[j] = shifted<A>(shift[j], means[j], mean[j], scale[j]);
}

template <class A>
const A* at(const A* p, int64_t i) {
    return p ? p + i : nullptr;
}

template <class T>
void columns_forward(const T* x, const wide<T>* weight, const wide<T>* bias, T* y, wide<T>* mean, wide<T>* var,
                     int64_t m, int64_t k, double eps, int threads) {
    using A = wide<T>;
    const Cut cut(m, k, 1);
    const bool keep = cut.chunks == 1 && m * cut.width <= KEEP;
    std::vector<double> means(cut.chunks * k, 0.0), squares(cut.chunks * k, 0.0);
    std::vector<A> scales(k), shifts(k);
    const int64_t pieces = cut.tiles * cut.chunks;
#pragma omp parallel num_threads(threads)
    {
        A* buffer = scratch<A>(keep ? m * cut.width : std::max<int64_t>(BLOCK, 8 * cut.width));
#pragma omp for schedule(static)
        for (int64_t piece = 0; piece < pieces; ++piece) {
            const int64_t chunk = piece / cut.tiles, c0 = piece % cut.tiles * cut.width;
            const int64_t width = std::min(cut.width, k - c0);
            const int64_t r0 = chunk * cut.height, r1 = std::min(r0 + cut.height, m);
            double *part = &means[chunk * k + c0], *part_squares = &squares[chunk * k + c0];
            column_moments(x + c0, k, r0, r1, width, keep, buffer, part, part_squares);
            if (cut.chunks > 1) continue;
            finish_columns(part, part_squares, m, width, at(weight, c0), at(bias, c0), eps, mean + c0, var + c0,
                           &scales[c0], &shifts[c0]);
            if (keep)
                normalise_columns(buffer, width, y + c0, k, m, width, mean + c0, &scales[c0], &shifts[c0]);
            else
                normalise_columns(x + c0, k, y + c0, k, m, width, mean + c0, &scales[c0], &shifts[c0]);
        }
        if (cut.chunks > 1) {
#pragma omp for schedule(static)
            for (int64_t j = 0; j < k; ++j) {
                Moments total;
                for (int64_t chunk = 0; chunk < cut.chunks; ++chunk) {
                    const int64_t r0 = chunk * cut.height, count = std::min(cut.height, m - r0);
                    total.join(count, means[chunk * k + j], squares[chunk * k + j]);
                }
                finish_columns(&total.mean, &total.squares, m, 1, at(weight, j), at(bias, j), eps, mean + j, var + j,
                               &scales[j], &shifts[j]);
            }
#pragma omp for schedule(static)
            for (int64_t piece = 0; piece < pieces; ++piece) {
                const int64_t r0 = piece / cut.tiles * cut.height, c0 = piece % cut.tiles * cut.width;
                const int64_t start = r0 * k + c0, rows = std::min(cut.height, m - r0);
                normalise_columns(x + start, k, y + start, k, rows, std::min(cut.width, k - c0), mean + c0,
                                  &scales[c0], &shifts[c0]);
            }
        }
    }
}

template <class T>
void columns_backward(const T* x, const T* dy, const wide<T>* weight, const wide<T>* mean, const wide<T>* var, T* dx,
                      wide<T>* sum_dy, wide<T>* sum_dy_xhat, int64_t m, int64_t k, double eps, int threads) {
    using A = wide<T>;
    const Cut cut(m, k, 2);
    const bool keep = dx && cut.chunks == 1 && 2 * m * cut.width <= KEEP;
    std::vector<double> gradients(cut.chunks * k, 0.0), products(cut.chunks * k, 0.0);
    std::vector<A> as(k), bs(k), cs(k);
    const int64_t pieces = cut.tiles * cut.chunks;
    const auto finish = [&](int64_t j, double gradient, double product) {
        const A rstd = 1 / std::sqrt(var[j] + static_cast<A>(eps));
        sum_dy[j] = static_cast<A>(gradient);
        sum_dy_xhat[j] = static_cast<A>(product * rstd);
        const Factors<A> f(rstd, weight ? weight[j] : 1, gradient, product, static_cast<double>(m));
        as[j] = f.a;
        bs[j] = f.b;
        cs[j] = f.c;
    };
    const auto write = [&](int64_t r0, int64_t r1, int64_t c0, int64_t width) {
        const A *__restrict a = &as[c0], *__restrict b = &bs[c0], *__restrict c = &cs[c0], *__restrict mu = mean + c0;
        for (int64_t i = r0; i < r1; ++i) {
            const T* __restrict xi = x + i * k + c0;
            const T* __restrict gi = dy + i * k + c0;
            T* __restrict out = dx + i * k + c0;
#pragma omp simd
            for (int64_t j = 0; j < width; ++j)
                store(out + j, a[j] * load(gi[j]) + (b[j] * (load(xi[j]) - mu[j]) + c[j]));
        }
    };
#pragma omp parallel num_threads(threads)
    {
        A* xs = scratch<A>(keep ? 2 * m * cut.width : 1);
        A* gs = xs + m * cut.width;  // used if keep; a null pointer otherwise costs bfloat16 a tenth of its speed
#pragma omp for schedule(static)
        for (int64_t piece = 0; piece < pieces; ++piece) {
            const int64_t chunk = piece / cut.tiles, c0 = piece % cut.tiles * cut.width;
            const int64_t width = std::min(cut.width, k - c0);
            const int64_t r0 = chunk * cut.height, r1 = std::min(r0 + cut.height, m);
            const A* __restrict mu = mean + c0;
            double* __restrict gradient = &gradients[chunk * k + c0];
            double* __restrict product = &products[chunk * k + c0];
            const int64_t rows = std::max<int64_t>(8, BLOCK / width);
            A g_sum[1024], p_sum[1024];
            for (int64_t r = r0; r < r1; r += rows) {
                std::fill_n(g_sum, width, A(0));
                std::fill_n(p_sum, width, A(0));
                for (int64_t i = r; i < std::min(r + rows, r1); ++i) {
                    const T* __restrict xi = x + i * k + c0;
                    const T* __restrict gi = dy + i * k + c0;
                    if (keep) {
                        A* __restrict xo = xs + i * width;
                        A* __restrict go = gs + i * width;
#pragma omp simd
                        for (int64_t j = 0; j < width; ++j) {
                            const A d = load(xi[j]) - mu[j], g = load(gi[j]);
                            xo[j] = d;
                            go[j] = g;
                            g_sum[j] += g;
                            p_sum[j] += g * d;
                        }
                    } else {
#pragma omp simd
                        for (int64_t j = 0; j < width; ++j) {
                            const A g = load(gi[j]);
                            g_sum[j] += g;
                            p_sum[j] += g * (load(xi[j]) - mu[j]);
                        }
                    }
                }
                for (int64_t j = 0; j < width; ++j) {
                    gradient[j] += g_sum[j];
                    product[j] += p_sum[j];
                }
            }
            if (cut.chunks > 1) continue;
            for (int64_t j = 0; j < width; ++j) finish(c0 + j, gradient[j], product[j]);
            if (!dx) continue;
            if (!keep) {
                write(r0, r1, c0, width);
                continue;
            }
            const A *__restrict a = &as[c0], *__restrict b = &bs[c0], *__restrict c = &cs[c0];
            for (int64_t i = 0; i < m; ++i) {
                const A* __restrict xo = xs + i * width;
                const A* __restrict go = gs + i * width;
                T* __restrict out = dx + i * k + c0;
#pragma omp simd
                for (int64_t j = 0; j < width; ++j) store(out + j, a[j] * go[j] + (b[j] * xo[j] + c[j]));
            }
        }
        if (cut.chunks > 1) {
#pragma omp for schedule(static)
            for (int64_t j = 0; j < k; ++j) {
                double gradient = 0, product = 0;
                for (int64_t chunk = 0; chunk < cut.chunks; ++chunk) {
                    gradient += gradients[chunk * k + j];
                    product += products[chunk * k + j];
                }
                finish(j, gradient, product);
            }
            if (dx) {
#pragma omp for schedule(static)
                for (int64_t piece = 0; piece < pieces; ++piece) {
                    const int64_t r0 = piece / cut.tiles * cut.height, c0 = piece % cut.tiles * cut.width;
                    write(r0, std::min(r0 + cut.height, m), c0, std::min(cut.width, k - c0));
                }
            }
        }
    }
}

}  // namespace

#define EXPORT(NAME, T)                                                                                              \
    extern "C" void rows_forward_##NAME(const T* x, const wide<T>* weight, const wide<T>* bias, T* y, wide<T>* mean, \
                                        wide<T>* var, int64_t n, int64_t c, int64_t l, double eps, int threads) {    \
        (l == 16   ? rows_forward<T, 16>                                                                             \
         : l == 64 ? rows_forward<T, 64>                                                                             \
                   : rows_forward<T, 0>)(x, weight, bias, y, mean, var, n, c, l, eps, threads);                      \
    }                                                                                                                \
    extern "C" void rows_backward_##NAME(const T* x, const T* dy, const wide<T>* weight, const wide<T>* mean,        \
                                         const wide<T>* var, T* dx, wide<T>* sum_dy, wide<T>* sum_dy_xhat,           \
                                         int64_t n, int64_t c, int64_t l, double eps, int threads) {                 \
        (l == 16   ? rows_backward<T, 16>                                                                            \
         : l == 64 ? rows_backward<T, 64>                                                                            \
                   : rows_backward<T, 0>)(x, dy, weight, mean, var, dx, sum_dy, sum_dy_xhat, n, c, l, eps, threads); \
    }                                                                                                                \
    extern "C" void columns_forward_##NAME(const T* x, const wide<T>* weight, const wide<T>* bias, T* y,             \
                                           wide<T>* mean, wide<T>* var, int64_t m, int64_t k, double eps,            \
                                           int threads) {                                                            \
        columns_forward(x, weight, bias, y, mean, var, m, k, eps, threads);                                          \
    }                                                                                                                \
    extern "C" void columns_backward_##NAME(const T* x, const T* dy, const wide<T>* weight, const wide<T>* mean,     \
                                            const wide<T>* var, T* dx, wide<T>* sum_dy, wide<T>* sum_dy_xhat,        \
                                            int64_t m, int64_t k, double eps, int threads) {                         \
        columns_backward(x, dy, weight, mean, var, dx, sum_dy, sum_dy_xhat, m, k, eps, threads);                     \
    }

EXPORT(float32, float)
EXPORT(float64, double)
EXPORT(bfloat16, bfloat16)
