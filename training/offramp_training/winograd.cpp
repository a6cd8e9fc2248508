// 3x3 convolutions of stride 1 and padding 1 by Winograd's F(4x4, 3x3): 36 multiplications where the direct way takes 144.
// Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks", sections 4 and 5.
//
// Tensors are float32 and channels last. A tile is 4x4 outputs and the 6x6 inputs under them; T tiles cover a chunk of
// images. In the transform's domain the convolution is 36 matrix products, and so are both of its gradients:
//     V = B' d B        inputs    (36, T, C)
//     U = G g G'        weights   (36, O, C), made in Python
//     Y = A' (V U') A   outputs
// Images go through in chunks, so that V and the products stay in the last-level cache.
#include <torch/extension.h>

namespace {

using Vec = float __attribute__((vector_size(32), aligned(4)));  // eight channels at once
constexpr int LANES = 8, IN = 6, OUT = 4;

constexpr float BT[IN][IN] = {{4, 0, -5, 0, 1, 0},  {0, -4, -4, 1, 1, 0}, {0, 4, -4, -1, 1, 0},
                              {0, -2, -1, 2, 1, 0}, {0, 2, -1, -2, 1, 0}, {0, 4, 0, -5, 0, 1}};
constexpr float AT[OUT][IN] = {{1, 1, 1, 1, 1, 0}, {0, 1, -1, 2, -2, 0}, {0, 1, 1, 4, 4, 0}, {0, 1, -1, 8, -8, 1}};

// Element (r, k) of the four transforms. Types rather than function pointers: only so do the zeros and ones vanish.
struct Inputs { static constexpr float at(int r, int k) { return BT[r][k]; } };
struct InputsTransposed { static constexpr float at(int r, int k) { return BT[k][r]; } };
struct Outputs { static constexpr float at(int r, int k) { return AT[r][k]; } };
struct OutputsTransposed { static constexpr float at(int r, int k) { return AT[k][r]; } };

// to = L from L', where L is R x S; the loops unroll to the few additions that the constants leave
template <int R, int S, typename L>
inline __attribute__((always_inline)) void sandwich(const Vec (&from)[S][S], Vec (&to)[R][R]) {
  Vec half[R][S];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int s = 0; s < S; s++) {
      Vec sum = {};
#pragma GCC unroll 8
      for (int k = 0; k < S; k++)
        if (L::at(r, k) != 0) sum += L::at(r, k) * from[k][s];
      half[r][s] = sum;
    }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int q = 0; q < R; q++) {
      Vec sum = {};
#pragma GCC unroll 8
      for (int k = 0; k < S; k++)
        if (L::at(q, k) != 0) sum += L::at(q, k) * half[r][k];
      to[r][q] = sum;
    }
}

struct Images {  // a chunk of channels-last images, or of their gradients
  float* data;
  int64_t count, height, width, channels;
  int64_t rows() const { return (height + OUT - 1) / OUT; }
  int64_t columns() const { return (width + OUT - 1) / OUT; }
  int64_t tiles() const { return count * rows() * columns(); }
  bool holds(int64_t y, int64_t x) const { return y >= 0 && y < height && x >= 0 && x < width; }
  Vec* at(int64_t n, int64_t y, int64_t x, int64_t c) const {
    return reinterpret_cast<Vec*>(data + ((n * height + y) * width + x) * channels + c);
  }
};

// Calls body(image, top, left, tile, channel) for every tile and group of channels; one image stays in one thread.
template <typename F>
void for_each_tile(const Images& images, F body) {
  at::parallel_for(0, images.count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; n++)
      for (int64_t row = 0; row < images.rows(); row++)
        for (int64_t column = 0; column < images.columns(); column++) {
          const int64_t tile = (n * images.rows() + row) * images.columns() + column;
          for (int64_t c = 0; c < images.channels; c += LANES) body(n, row * OUT, column * OUT, tile, c);
        }
  });
}

// Reads SIZE x SIZE pixels of each tile, `border` pixels up and left of its outputs, into the 36 transformed planes.
template <int SIZE, typename L>
void to_planes(const Images& images, float* planes, int border) {
  const int64_t tiles = images.tiles(), channels = images.channels;
  for_each_tile(images, [&](int64_t n, int64_t top, int64_t left, int64_t tile, int64_t c) {
    Vec from[SIZE][SIZE], to[IN][IN];
#pragma GCC unroll 8
    for (int i = 0; i < SIZE; i++)
#pragma GCC unroll 8
      for (int j = 0; j < SIZE; j++) {
        const int64_t y = top + i - border, x = left + j - border;
        from[i][j] = images.holds(y, x) ? *images.at(n, y, x, c) : Vec{};
      }
    sandwich<IN, SIZE, L>(from, to);
#pragma GCC unroll 8
    for (int i = 0; i < IN; i++)
#pragma GCC unroll 8
      for (int j = 0; j < IN; j++) *reinterpret_cast<Vec*>(planes + ((i * IN + j) * tiles + tile) * channels + c) = to[i][j];
  });
}

// Adds the SIZE x SIZE pixels that each tile's 36 planes give to the images.
template <int SIZE, typename L>
void add_from_planes(const float* planes, const Images& images, int border) {
  const int64_t tiles = images.tiles(), channels = images.channels;
  for_each_tile(images, [&](int64_t n, int64_t top, int64_t left, int64_t tile, int64_t c) {
    Vec from[IN][IN], to[SIZE][SIZE];
#pragma GCC unroll 8
    for (int i = 0; i < IN; i++)
#pragma GCC unroll 8
      for (int j = 0; j < IN; j++)
        from[i][j] = *reinterpret_cast<const Vec*>(planes + ((i * IN + j) * tiles + tile) * channels + c);
    sandwich<SIZE, IN, L>(from, to);
#pragma GCC unroll 8
    for (int i = 0; i < SIZE; i++)
#pragma GCC unroll 8
      for (int j = 0; j < SIZE; j++) {
        const int64_t y = top + i - border, x = left + j - border;
        if (images.holds(y, x)) *images.at(n, y, x, c) += to[i][j];
      }
  });
}

at::Tensor channels_last(const at::Tensor& images_NCHW) { return images_NCHW.permute({0, 2, 3, 1}).contiguous(); }

Images chunk_of(const at::Tensor& images_NHWC, int64_t begin, int64_t chunk) {
  const auto s = images_NHWC.sizes();
  return {images_NHWC.data_ptr<float>() + begin * s[1] * s[2] * s[3], std::min(chunk, s[0] - begin), s[1], s[2], s[3]};
}

// images (N, C, H, W), weights U (36, O, C) -> (N, O, H, W)
at::Tensor forward(at::Tensor images, const at::Tensor& weights, int64_t chunk) {
  images = channels_last(images);
  auto outputs = at::zeros({images.size(0), images.size(1), images.size(2), weights.size(1)}, images.options());
  for (int64_t begin = 0; begin < images.size(0); begin += chunk) {
    const auto source = chunk_of(images, begin, chunk);
    auto planes = at::empty({IN * IN, source.tiles(), source.channels}, images.options());
    to_planes<IN, Inputs>(source, planes.data_ptr<float>(), 1);
    const auto products = at::bmm(planes, weights.transpose(1, 2));
    add_from_planes<OUT, Outputs>(products.data_ptr<float>(), chunk_of(outputs, begin, chunk), 0);
  }
  return outputs.permute({0, 3, 1, 2});
}

// gradients of the images (undefined unless wanted) and of U
std::tuple<at::Tensor, at::Tensor> backward(at::Tensor images, const at::Tensor& weights, at::Tensor gradient, int64_t chunk,
                                            bool images_wanted) {
  images = channels_last(images);
  gradient = channels_last(gradient);
  at::Tensor images_gradient, weights_gradient;
  if (images_wanted) images_gradient = at::zeros_like(images);
  for (int64_t begin = 0; begin < images.size(0); begin += chunk) {
    const auto source = chunk_of(images, begin, chunk), above = chunk_of(gradient, begin, chunk);
    auto planes = at::empty({IN * IN, source.tiles(), source.channels}, images.options());
    auto products = at::empty({IN * IN, above.tiles(), above.channels}, images.options());
    to_planes<IN, Inputs>(source, planes.data_ptr<float>(), 1);
    to_planes<OUT, OutputsTransposed>(above, products.data_ptr<float>(), 0);
    if (weights_gradient.defined())
      weights_gradient.baddbmm_(products.transpose(1, 2), planes);
    else
      weights_gradient = at::bmm(products.transpose(1, 2), planes);
    if (images_wanted) {
      at::bmm_out(planes, products, weights);
      add_from_planes<IN, InputsTransposed>(planes.data_ptr<float>(), chunk_of(images_gradient, begin, chunk), 1);
    }
  }
  return {images_wanted ? images_gradient.permute({0, 3, 1, 2}) : images_gradient, weights_gradient};
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  module.def("forward", &forward, py::call_guard<py::gil_scoped_release>());
  module.def("backward", &backward, py::call_guard<py::gil_scoped_release>());
}
