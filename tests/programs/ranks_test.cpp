// The programs on several ranks give what they give on one.

#include <cmath>

#include "dflash/data/offline_shard_dataset.hpp"
#include "dflash/io/safetensors.hpp"
#include "programs/programs.hpp"

namespace ranks_test {

const Arguments data{"--num-samples", "24",           "--sample-filter",
                     "adjacent-pair", "--max-length", "120"};

/// Largest difference over largest entry, of all tensors of two checkpoints.
double difference(const std::filesystem::path& a, const std::filesystem::path& b) {
  const dflash::SafetensorsFile one(a / "model.safetensors"), many(b / "model.safetensors");
  double top = 0, worst = 0;
  for (const auto& [name, tensor] : one.tensors()) {
    const auto x = one.read<float>(name), y = many.read<float>(name);
    REQUIRE(x.size() == y.size());
    for (std::size_t i = 0; i < x.size(); ++i) {
      top = std::max(top, std::abs(double(x[i])));
      worst = std::max(worst, std::abs(double(x[i]) - double(y[i])));
    }
  }
  return worst / top;
}

/// Loss and norm of every step are those of another run, within the precision of float.
void check_curve(const std::filesystem::path& one, const std::filesystem::path& many) {
  const auto a = json_lines(one / "log.jsonl"), b = json_lines(many / "log.jsonl");
  REQUIRE(a.size() == b.size());
  for (std::size_t i = 0; i < a.size(); ++i)
    for (const char* field : {"loss", "grad_norm"}) {
      CAPTURE(field);
      const double x = a[i].at(field), y = b[i].at(field);
      CHECK(std::abs(x - y) <= 1e-5 * std::abs(x));
    }
}

TEST_CASE("the store that several ranks capture is that of one, byte for byte") {
  const TemporaryFolder folder;
  const auto flags = [&](const std::string& store) {
    return capture_flags(folder / store) + data +
           Arguments{"--num-samples", "60", "--shard-size", "1", "--batch-size", "3"};
  };
  succeed("prepare_hidden_states", flags("one"));
  const auto one = files_below(folder / "one");
  for (const char* ranks : {"2", "3", "7"}) {
    CAPTURE(ranks);
    const auto store = std::string("of-") + ranks;
    succeed("prepare_hidden_states", flags(store) + Arguments{"--ranks", ranks});
    CHECK(files_below(folder / store) == one);
  }
  // A target over two ranks adds up in another order, always the same.
  succeed("prepare_hidden_states", flags("two") + Arguments{"--ranks", "2", "--tp-size", "2"});
  succeed("prepare_hidden_states", flags("six") + Arguments{"--ranks", "6", "--tp-size", "2"});
  CHECK(files_below(folder / "six") == files_below(folder / "two"));
  const dflash::OfflineShardDataset whole(folder / "one"), split(folder / "two");
  REQUIRE(whole.size() == split.size());
  for (dflash::index_t i = 0; i < whole.size(); ++i) {
    const auto a = whole[i].features, b = split[i].features;
    std::vector<float> x(std::size_t(a->rows() * a->width())), y(x.size());
    a->read({0, a->rows()}, x.data());
    b->read({0, b->rows()}, y.data());
    float top = 0, worst = 0;
    for (std::size_t k = 0; k < x.size(); ++k) {
      top = std::max(top, std::abs(x[k]));
      worst = std::max(worst, std::abs(x[k] - y[k]));
    }
    CHECK(worst <= 1e-5f * top);
  }
}

TEST_CASE("a capture on several ranks, killed and continued on others, stores the same bytes") {
  const TemporaryFolder folder;
  const auto flags = [&](const std::string& store, const std::string& ranks) {
    return capture_flags(folder / store) + data +
           Arguments{"--num-samples", "100", "--shard-size", "1",
                     "--batch-size",  "2",   "--ranks",      ranks};
  };
  succeed("prepare_hidden_states", flags("whole", "1"));
  const auto shards = [&](const std::string& store) {
    long count = 0;
    std::error_code missing;
    for (const auto& entry : std::filesystem::directory_iterator(folder / store, missing))
      count += entry.path().filename().string().starts_with("shard-") ? 1 : 0;
    return count;
  };
  REQUIRE(shards("whole") > 12);
  int killed = 0;
  long until = 1;
  for (const char* ranks : {"3", "4", "2"}) {
    Process process("prepare_hidden_states", flags("parts", ranks));
    while (!process.ended() && shards("parts") < until) ::usleep(200);
    process.kill();
    const auto outcome = process.wait();
    INFO(outcome.err);
    REQUIRE((outcome.status == 0 || outcome.status == 128 + SIGKILL));
    killed += outcome.status != 0;
    until = shards("parts") + 3;
  }
  CHECK(killed > 0);
  succeed("prepare_hidden_states", flags("parts", "3"));
  CHECK(files_below(folder / "parts") == files_below(folder / "whole"));
  CHECK(mentions(succeed("prepare_hidden_states", flags("parts", "2")).out,
                 "nothing to do, the store is complete"));
}

TEST_CASE("training on every kind of layout has the curve and the weights of one rank") {
  const TemporaryFolder folder;
  succeed("prepare_hidden_states", capture_flags(folder / "store") + data);
  struct Case {
    std::string program, steps, layout;
  };
  // Two samples a step leave a third replica idle; accumulation deals one after the other.
  const Case cases[] = {
      {"train_online", "--batch-size 3", "--ranks 2"},
      {"train_online", "--batch-size 2", "--ranks 3 --tp-size 3"},
      {"train_online", "--batch-size 2", "--ranks 2 --sp-ulysses-size 2"},
      {"train_online", "--batch-size 2", "--ranks 2 --sp-ring-size 2 --tp-size 2"},
      {"train_online", "--batch-size 3", "--ranks 4 --sp-ulysses-size 2 --tp-size 4"},
      {"train_online", "--batch-size 2 --accumulation-steps 2",
       "--ranks 4 --sp-ulysses-size 2 --sp-ring-size 2 --tp-size 2"},
      {"train_online", "--batch-size 3 --loss-type dpace",
       "--ranks 6 --sp-ulysses-size 3 --tp-size 2"},
      {"train_offline", "--batch-size 3", "--ranks 2 --tp-size 2"},
      {"train_offline", "--batch-size 2", "--ranks 3 --tp-size 3"},
      {"train_offline", "--batch-size 3 --loss-type dpace",
       "--ranks 4 --sp-ulysses-size 2 --tp-size 2"},
      {"train_offline", "--batch-size 2 --accumulation-steps 2",
       "--ranks 6 --sp-ring-size 3 --tp-size 6"},
  };
  int number = 0;
  std::map<std::string, std::filesystem::path> ones;
  for (const Case& c : cases) {
    CAPTURE(c.program);
    CAPTURE(c.steps);
    CAPTURE(c.layout);
    const Arguments source = c.program == "train_online"
                                 ? Arguments{"--train-data-path", tiny_prompts} + data
                                 : Arguments{"--train-hidden-states-path", folder / "store"};
    const auto flags = [&](const std::filesystem::path& output) {
      return (train_flags(output) + source + Arguments{"--seed", "3", "--learning-rate", "2e-4"}) +
             ("--max-steps 5 " + c.steps);
    };
    auto& one = ones[c.program + c.steps];
    if (one.empty()) {
      one = folder / ("one-" + std::to_string(number));
      succeed(c.program, flags(one));
    }
    const auto many = folder / ("many-" + std::to_string(number++));
    succeed(c.program, flags(many) + c.layout);
    check_curve(one, many);
    CHECK(difference(one / "step-000005", many / "step-000005") <= 1e-4);
  }
}

TEST_CASE("a rank that fails is named, with what it says, and the run resumes on other ranks") {
  const TemporaryFolder folder;
  const auto store = folder / "store", damaged = folder / "damaged";
  succeed("prepare_hidden_states", capture_flags(store) + data);
  copy_folder(store, damaged);
  const auto flags = [&](const std::filesystem::path& output, const std::string& from) {
    return train_flags(output) + Arguments{"--train-hidden-states-path",
                                           folder / from,
                                           "--max-steps",
                                           "12",
                                           "--batch-size",
                                           "2",
                                           "--save-interval",
                                           "3"};
  };
  succeed("train_offline", flags(folder / "whole", "store"));
  // One byte of the features: the rank that needs the row finds it, whenever its turn comes.
  const auto shard = damaged / "shard-000000.safetensors";
  std::string content = content_of(shard);
  content[8192] = char(content[8192] ^ 1);
  put(shard, content);
  const auto parts = flags(folder / "parts", "damaged");
  const auto why = failure_of("train_offline", parts + "--ranks 3 --sp-ulysses-size 3");
  CHECK_MESSAGE(why.starts_with("rank "), why);
  CHECK_MESSAGE(mentions(why, " failed: " + shard.string() + ": sample "), why);
  CHECK_MESSAGE(why.ends_with("does not match its checksum"), why);
  content[8192] = char(content[8192] ^ 1);
  put(shard, content);
  succeed("train_offline", parts + "--resume --ranks 4 --sp-ring-size 2 --tp-size 2");
  CHECK(difference(folder / "whole" / "step-000012", folder / "parts" / "step-000012") <= 1e-3);
}

TEST_CASE("ranks that do not fit together are refused with their numbers") {
  const TemporaryFolder folder;
  const auto online = train_flags(folder / "draft") + Arguments{"--train-data-path", tiny_prompts};
  CHECK(failure_of("train_online", online + "--ranks 3 --sp-ulysses-size 2") ==
        "there are 3 ranks, which the 2 (--sp-ulysses-size) x 1 (--sp-ring-size) of a sequence "
        "group do not divide");
  CHECK(failure_of("train_online", online + "--ranks 4 --tp-size 3") ==
        "there are 4 ranks, which the target group's 3 (--tp-size) do not divide");
  CHECK(mentions(failure_of("train_online", online + "--ranks 16 --sp-ulysses-size 16"),
                 "--sp-ulysses-size 16 is larger than the draft's number of query heads, "));
  CHECK(failure_of("prepare_hidden_states",
                   capture_flags(folder / "store") + "--ranks 5 --tp-size 2") ==
        "there are 5 ranks, which the target group's 2 (--tp-size) do not divide");
  CHECK_FALSE(std::filesystem::exists(folder / "store"));
}

TEST_CASE("the plan counts what the ranks of a target group share") {
  const TemporaryFolder folder;
  const auto plan = [&](const std::string& layout) {
    return succeed("train_online", (train_flags(folder / "draft") +
                                    Arguments{"--train-data-path", tiny_prompts, "--plan"}) +
                                       layout)
        .out;
  };
  const auto one = plan("--ranks 4"), four = plan("--ranks 4 --tp-size 4");
  CHECK(mentions(one, "4 ranks: 4 replicas x 1 ring x 1 ulysses\n"));
  CHECK_FALSE(mentions(one, "in the target group"));
  CHECK(mentions(four, "in the target group, at most: "));
  const auto target = [](const std::string& text) {
    return std::stod(text.substr(text.find("  target: ") + 10));  // both in MiB
  };
  CHECK(target(four) < 0.4 * target(one));
  CHECK_FALSE(std::filesystem::exists(folder / "draft"));
}

}  // namespace ranks_test
