// Calls the kernels on inputs drawn from a seed and compares with naive loops in long double. Every buffer ends where
// its last value does, at an offset from its beginning: built with sanitizers, a step beyond either end is found.
//
//     kernels_driver SEED CALLS

#include "kernels.cpp"

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>

namespace {

using real = long double;
std::mt19937_64 rng;

int64_t drawn(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(rng); }
int64_t length(int64_t high) {  // small lengths as often as large ones
    return std::max<int64_t>(1, std::llround(std::exp2(std::uniform_real_distribution<>(0, std::log2(high))(rng))));
}

template <class T>
struct Buffer {
    int64_t offset, count;
    std::unique_ptr<T[]> memory;

    explicit Buffer(int64_t count) : offset(drawn(0, 3)), count(count), memory(new T[offset + count]) {}
    T* data() { return memory.get() + offset; }
    real at(int64_t i) { return load(data()[i]); }
    void fill(double mean, double spread) {
        std::normal_distribution<> normal(mean, spread);
        for (int64_t i = 0; i < count; ++i) store(data() + i, static_cast<wide<T>>(normal(rng)));
    }
};

template <class T>
struct Kernels;
#define KERNELS(NAME, T)                                        \
    template <>                                                 \
    struct Kernels<T> {                                         \
        static constexpr const char* name = #NAME;              \
        static constexpr auto rows_f = rows_forward_##NAME;     \
        static constexpr auto rows_b = rows_backward_##NAME;    \
        static constexpr auto cols_f = columns_forward_##NAME;  \
        static constexpr auto cols_b = columns_backward_##NAME; \
    };
KERNELS(float32, float)
KERNELS(float64, double)
KERNELS(bfloat16, bfloat16)

template <class T>
void call(int64_t number) {
    using A = wide<T>;
    const bool rows = drawn(0, 1), weighted = drawn(0, 3), biased = drawn(0, 3), with_dx = drawn(0, 4);
    const int64_t budget = 1 << drawn(4, 18), c = length(std::min<int64_t>(budget, 3000));
    const int64_t kinds[] = {1, 16, 64, length(budget / c + 1)};
    const int64_t l = rows ? kinds[drawn(0, 3)] : 1, n = length(std::max<int64_t>(1, budget / (c * l)) + 1);
    const int threads = static_cast<int>(drawn(1, 3));
    const double eps = 1e-5, offset = drawn(0, 1) ? 0 : std::exp2(drawn(-3, sizeof(T) > 2 ? 16 : 4));
    const auto at = [&](int64_t i, int64_t ch, int64_t j) { return (i * c + ch) * l + j; };

    Buffer<T> x(n * c * l), dy(n * c * l), y(n * c * l), dx(n * c * l);
    Buffer<A> weight(c), bias(c), mean(c), var(c), sum_dy(c), sum_product(c);
    x.fill(offset, 1);
    if (!drawn(0, 7)) x.fill(offset, 0);  // constants
    dy.fill(0.5, 1);
    weight.fill(1, 0.3);
    bias.fill(0, 1);
    const A *w = weighted ? weight.data() : nullptr, *b = biased ? bias.data() : nullptr;
    T* d = with_dx ? dx.data() : nullptr;
    if (rows) {
        Kernels<T>::rows_f(x.data(), w, b, y.data(), mean.data(), var.data(), n, c, l, eps, threads);
        Kernels<T>::rows_b(x.data(), dy.data(), w, mean.data(), var.data(), d, sum_dy.data(), sum_product.data(), n, c,
                           l, eps, threads);
    } else {
        Kernels<T>::cols_f(x.data(), w, b, y.data(), mean.data(), var.data(), n, c, eps, threads);
        Kernels<T>::cols_b(x.data(), dy.data(), w, mean.data(), var.data(), d, sum_dy.data(), sum_product.data(), n, c,
                           eps, threads);
    }

    const real unit = std::numeric_limits<A>::epsilon(), m = n * l;
    const real digit = sizeof(T) == 2 ? 1e-2L : sizeof(T) == 4 ? 3e-4L : 1e-9L;
    const auto check = [&](const char* what, real found, real want, real scale) {
        if (std::abs(found - want) <= digit * (std::abs(want) + scale)) return;
        std::printf("call %lld: %s %s, n=%lld c=%lld l=%lld, offset %g: %s is %Lg, not %Lg\n", (long long)number,
                    rows ? "rows" : "columns", Kernels<T>::name, (long long)n, (long long)c, (long long)l, offset, what,
                    found, want);
        std::exit(1);
    };
    for (int64_t ch = 0; ch < c; ++ch) {
        real mu = 0, squares = 0, gradient = 0, product = 0;
        for (int64_t i = 0; i < n; ++i)
            for (int64_t j = 0; j < l; ++j) mu += x.at(at(i, ch, j)) / m;
        for (int64_t i = 0; i < n; ++i)
            for (int64_t j = 0; j < l; ++j) squares += (x.at(at(i, ch, j)) - mu) * (x.at(at(i, ch, j)) - mu);
        check("mean", mean.at(ch), mu, 1e-3L);
        check("variance", var.at(ch), squares / m, 1e-4L);
        if (!(var.at(ch) >= 0)) check("sign of the variance", var.at(ch), 0, 0);
        const real rstd = 1 / std::sqrt(squares / m + eps), g = weighted ? weight.at(ch) : 1;
        const real rounding = unit * std::abs(mu) * rstd;  // of the mean that the backward gets
        const real in_y = sizeof(A) == 8 ? 4 * rounding / digit : 0;  // narrower means are corrected in y
        for (int64_t i = 0; i < n; ++i)
            for (int64_t j = 0; j < l; ++j) {
                const real xhat = (x.at(at(i, ch, j)) - mu) * rstd, up = dy.at(at(i, ch, j));
                gradient += up;
                product += up * xhat;
                check("y", y.at(at(i, ch, j)), xhat * g + (biased ? bias.at(ch) : 0), 1 + in_y);
            }
        check("sum of dy", sum_dy.at(ch), gradient, m);
        check("sum of dy * xhat", sum_product.at(ch), product, m * (1 + 8 * rounding / digit));
        if (!with_dx) continue;
        for (int64_t i = 0; i < n; ++i)
            for (int64_t j = 0; j < l; ++j) {
                const real xhat = (x.at(at(i, ch, j)) - mu) * rstd, up = dy.at(at(i, ch, j));
                const real want = g * rstd * (up - gradient / m - xhat * product / m);
                check("dx", dx.at(at(i, ch, j)), want, (4 + std::abs(g)) * rstd * (1 + 8 * rounding / digit));
            }
    }
}

}  // namespace

int main(int, char** arguments) {
    const int64_t seed = std::atoll(arguments[1]), calls = std::atoll(arguments[2]);
    for (int64_t i = 0; i < calls; ++i) {
        rng.seed(static_cast<uint64_t>(seed + i));
        switch (drawn(0, 2)) {
            case 0: call<float>(i); break;
            case 1: call<double>(i); break;
            default: call<bfloat16>(i);
        }
    }
    std::printf("%lld calls agree\n", (long long)calls);
}
