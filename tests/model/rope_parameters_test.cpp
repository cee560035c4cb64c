#include "dflash/model/rope_parameters.hpp"

#include <doctest/doctest.h>

namespace rope_parameters_test {

using dflash::RopeParameters;
using nlohmann::json;

void check(const json& config, dflash::index_t head_dim, const std::vector<double>& frequencies,
           double attention_factor) {
  const auto rope = RopeParameters::read(config);
  const auto got = rope.inverse_frequencies(head_dim);
  REQUIRE(got.size() == frequencies.size());
  for (std::size_t i = 0; i < got.size(); ++i)
    CHECK(got[i] == doctest::Approx(frequencies[i]).epsilon(1e-14));
  CHECK(rope.attention_factor == doctest::Approx(attention_factor).epsilon(1e-14));
}

// The numbers are what transformers 4.57.1 computes, evaluated in double precision.
TEST_CASE("plain and linearly scaled frequencies") {
  const std::vector<double> plain{1, 0.031622776601683791, 0.001, 3.1622776601683795e-05};
  check({{"rope_theta", 1e6}, {"rope_scaling", nullptr}}, 8, plain, 1);
  check({{"rope_parameters", {{"rope_theta", 1e6}, {"rope_type", "default"}}}}, 8, plain, 1);
  check({{"rope_theta", 1e4}, {"rope_scaling", {{"type", "linear"}, {"factor", 4.0}}}}, 8,
        {0.25, 0.025, 0.0025, 0.00025}, 1);
}

TEST_CASE("a config without rope_theta has the families' default") {
  check(json::object(), 4, {1, 0.01}, 1);
}

TEST_CASE("llama3 scaling keeps high, divides low and blends middle frequencies") {
  check(
      {{"rope_theta", 5e5},
       {"rope_scaling",
        {{"rope_type", "llama3"},
         {"factor", 8.0},
         {"low_freq_factor", 1.0},
         {"high_freq_factor", 4.0},
         {"original_max_position_embeddings", 8192}}}},
      16,
      {1, 0.19392274474868576, 0.037606030930863933, 0.0072926647372171085, 0.00052484616099295468,
       3.4281021959525912e-05, 6.6478698711812362e-06, 1.2891731721515574e-06},
      1);
}

TEST_CASE("yarn scaling in all its forms") {
  check({{"rope_theta", 1e6},
         {"max_position_embeddings", 131072},
         {"rope_scaling",
          {{"rope_type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 32768}}}},
        16,
        {1, 0.17782794100389226, 0.031622776601683791, 0.004217559938927618, 0.0005,
         4.4456985250973067e-05, 7.9056941504209488e-06, 1.4058533129758728e-06},
        1.1386294361119891);
  check({{"rope_theta", 1e6},
         {"max_position_embeddings", 32768},
         {"rope_scaling",
          {{"rope_type", "yarn"},
           {"factor", 4.0},
           {"original_max_position_embeddings", nullptr},
           {"beta_fast", 16.0},
           {"beta_slow", 2.0},
           {"truncate", false}}}},
        16,
        {1, 0.17782794100389226, 0.031622776601683791, 0.005623413251903491, 0.00059567989646639894,
         4.4456985250973067e-05, 7.9056941504209488e-06, 1.4058533129758728e-06},
        1.1386294361119891);
  json config{{"rope_theta", 1e4},
              {"rope_scaling",
               {{"rope_type", "yarn"},
                {"factor", 40.0},
                {"original_max_position_embeddings", 4096},
                {"mscale", 0.707},
                {"mscale_all_dim", 1.0}}}};
  const std::vector<double> frequencies{
      1,        0.31622776601683794,    0.1,     0.023914724805023366,
      0.005125, 0.00084986212117025184, 2.5e-05, 7.9056941504209471e-06};
  check(config, 16, frequencies, 0.92104235531633993);
  config["rope_scaling"]["attention_factor"] = 1.25;
  check(config, 16, frequencies, 1.25);
}

TEST_CASE("what cannot be read is an error") {
  for (const json& scaling :
       {json{{"rope_type", "sideways"}, {"factor", 2.0}}, json{{"rope_type", "linear"}},
        json{{"rope_type", "linear"}, {"factor", -1.0}},
        json{{"rope_type", "llama3"}, {"factor", 8.0}},
        json{{"rope_type", "yarn"}, {"factor", 8.0}},
        json{{"rope_type", "yarn"}, {"factor", 8.0}, {"original_max_position_embeddings", "many"}}})
    CHECK_THROWS_AS(RopeParameters::read({{"rope_scaling", scaling}}), dflash::Error);
  CHECK_THROWS_AS(RopeParameters::read({{"rope_theta", "10000"}}), dflash::Error);
  CHECK_THROWS_AS(RopeParameters::read({{"rope_theta", 0}}), dflash::Error);
}

}  // namespace rope_parameters_test
