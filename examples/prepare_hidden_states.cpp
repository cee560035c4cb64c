// Captures a target's hidden states of conversations into a store:
//   prepare_hidden_states --target-model-path T --model-type dflash --data-path D.jsonl
//     --output-path STORE
// On several ranks: --ranks 4 --tp-size 2, or under mpirun as prepare_hidden_states_mpi. A capture
// that was interrupted goes on where it stopped when the same command runs again.

#include <future>
#include <iostream>

#include "device.hpp"
#include "flag_checks.hpp"
#include "guarded.hpp"
#include "launch.hpp"
#include "store_options.hpp"
#include "tokenized_data.hpp"

using namespace dflash;
using B = examples::Device::Backend;
namespace fs = std::filesystem;

namespace {

struct Options {
  examples::StoreOptions store;
  std::string model_type = "eagle3";
  examples::Device device;
  index_t batch_size = 32;
  index_t tensor_parallel = 1;  // ranks that hold a target together
  int threads = 0;
  examples::TargetStorage storage;
  examples::DataOptions data;

  void add_to(CLI::App& app) {
    store.add_to(app);
    data.add_to(app, "--data-path", 2048);
    app.add_option("--model-type", model_type, "what the states are for: eagle3 or dflash")
        ->check(examples::one_of(dflash::model_types))
        ->capture_default_str();
    app.add_option("--batch-size", batch_size, "samples that pass the target together")
        ->capture_default_str()
        ->check(examples::above_zero());
    app.add_option("--tp-size", tensor_parallel, "ranks that hold the target together")
        ->capture_default_str()
        ->check(examples::above_zero());
    device.add_to(app);
    storage.add_to(app);
    app.add_option("--threads", threads, examples::Device::threads_help)
        ->capture_default_str()
        ->check(examples::not_below_zero());
  }
};

constexpr index_t pack_tokens = 16384;  // that pass the target together, at most

/// What every rank of the world does to capture a store: the ranks of a target group run the target
/// together, its first rank writes. Groups take shards in turn.
template <Communicator C>
class Capture {
 public:
  Capture(C world, B& backend, const Options& options, const std::vector<TokenizedSample>& samples,
          const ShardPlan& plan)
      : backend_(&backend),
        options_(&options),
        samples_(&samples),
        plan_(&plan),
        layers_(plan.description().layer_ids),
        world_(std::move(world)),
        group_(world_, options.tensor_parallel) {}

  void run() {
    std::optional<StoreFolder> store;
    if (world_.rank() == 0) {
      store.emplace(options_->store.output, *plan_);
      store->expect_space();
      store->update();
    }
    const auto missing = list_of_first(store ? store->missing() : std::vector<index_t>());
    done_ = plan_->size() - samples_of(missing);
    if (store && missing.empty())
      std::printf("nothing to do, the store is complete: %s\n",
                  options_->store.output.string().c_str());
    else if (store && done_ > 0)
      std::printf("continuing behind %td samples\n", done_);
    if (missing.empty()) return;
    start_ = seconds_now();
    progress_.emplace(std::cout, is_terminal(stdout), "samples", plan_->size(), done_);
    const TargetModel target(*backend_, group_, options_->store.target, options_->storage);

    const auto groups = std::size_t(group_.groups());
    const auto turns = plan_->runs(missing, turn_rows(missing));
    for (std::size_t first = 0; first < turns.size(); first += groups) {
      const std::size_t own = first + std::size_t(group_.index());
      if (own < turns.size()) write(target, turns[own], store.has_value());
      world_.barrier();
      if (!store) continue;
      store->update();
      for (std::size_t i = first; i < std::min(turns.size(), first + groups); ++i) {
        done_ += samples_of(turns[i]);
        captured_rows_ += rows_of(turns[i]);
      }
      show(done_, captured_rows_);
    }
    if (store) progress_->finish();
  }

 private:
  /// The same list on every rank: the first one's.
  std::vector<index_t> list_of_first(std::vector<index_t> list) {
    const index_t size = index_t(list.size());
    auto size_there = uploaded(*backend_, &size, 1);
    world_.broadcast(*backend_, size_there.view(), 0);
    list.resize(std::size_t(downloaded(*backend_, size_there.view())[0]));
    auto there = uploaded(*backend_, list.data(), index_t(list.size()));
    world_.broadcast(*backend_, there.view(), 0);
    return downloaded(*backend_, there.view());
  }

  index_t samples_of(const std::vector<index_t>& shards) const {
    index_t samples = 0;
    for (const index_t shard : shards) samples += plan_->shard(shard).samples.size();
    return samples;
  }

  index_t rows_of(const std::vector<index_t>& shards) const {
    index_t rows = 0;
    for (const index_t shard : shards) rows += plan_->shard(shard).rows;
    return rows;
  }

  void show(index_t samples, index_t rows) {
    const double seconds = std::max(seconds_now() - start_, 1e-9);
    progress_->show(samples, rate_text(double(rows) / seconds) + " tokens/s");
  }

  /// Enough for whole packs, but so few that all groups come to an end together.
  index_t turn_rows(const std::vector<index_t>& missing) const {
    return std::min(2 * pack_tokens, rows_of(missing) / (4 * group_.groups()));
  }

  /// While a pack is written the next one passes the target.
  void write(const TargetModel<B, C>& target, const std::vector<index_t>& shards, bool first) {
    std::optional<ShardWriter> writer;
    if (group_.rank() == 0) writer.emplace(options_->store.output, *plan_, shards);
    std::future<void> written;  // waits when it goes, before the writer does
    index_t here = 0, here_rows = 0;
    for (const Range range : plan_->samples(shards))
      for (Range pack{range.begin, range.begin}; pack.end < range.end;) {
        pack = examples::next_pack(*samples_, {pack.end, range.end}, options_->batch_size,
                                   pack_tokens);
        const std::span samples(samples_->data() + pack.begin, std::size_t(pack.size()));
        const auto captured =
            examples::capture(target, samples, layers_, options_->model_type == "eagle3");
        if (writer) {
          auto features = on_host(captured.output.features),
               last_hidden = on_host(captured.output.last_hidden);
          if (written.valid()) written.get();
          written = std::async(std::launch::async,
                               [&writer = *writer, samples, features = std::move(features),
                                last_hidden = std::move(last_hidden)] {
                                 write_pack(writer, samples, features, last_hidden);
                               });
        }
        here += pack.size();
        here_rows += captured.offsets.back();
        if (first && done_ + here < plan_->size()) show(done_ + here, captured_rows_ + here_rows);
      }
    if (written.valid()) written.get();
  }

  using T = B::value_type;
  struct HostRows {
    std::vector<T> values;
    index_t width;

    View<const T, 2> operator()(Range rows) const {
      return {values.data() + rows.begin * width, {width > 0 ? rows.size() : 0, width}};
    }
  };

  HostRows on_host(const Tensor<B, T, 2>& there) const {
    return {downloaded(*backend_, there.view()), there.view().shape[1]};
  }

  static void write_pack(ShardWriter& writer, std::span<const TokenizedSample> samples,
                         const HostRows& features, const HostRows& last_hidden) {
    index_t end = 0;
    for (const TokenizedSample& sample : samples) {
      const Range rows{end, end + index_t(sample.tokens.size())};
      end = rows.end;
      writer.write(sample, features(rows), last_hidden(rows));
    }
  }

  B* backend_;
  const Options* options_;
  const std::vector<TokenizedSample>* samples_;
  const ShardPlan* plan_;
  std::vector<index_t> layers_;
  C world_;
  TensorParallelGroup<C> group_;
  std::optional<CountProgress> progress_;
  double start_ = 0;
  index_t done_ = 0;           // samples in the store
  index_t captured_rows_ = 0;  // since the start
};

}  // namespace

int main(int argc, char** argv) {
  examples::Launcher launcher(argc, argv);
  return launcher.guarded("prepare_hidden_states", [&] {
    CLI::App app("Captures a target's hidden states of conversations into a store.",
                 "prepare_hidden_states");
    app.failure_message(examples::flag_failure);
    Options options;
    options.add_to(app);
    if (const auto status = launcher.parse(app, argc, argv)) return *status;
    if (launcher.ranks() % options.tensor_parallel != 0)
      throw Error("there are " + std::to_string(launcher.ranks()) +
                  " ranks, which the target group's " + std::to_string(options.tensor_parallel) +
                  " (--tp-size) do not divide");

    FilterOptions filter{.model_type = model_types.named(options.model_type),
                         .block_size = options.store.blocks_of()};
    const bool eagle3 = filter.model_type == ModelType::eagle3;
    const TargetConfig target = TargetConfig::read(options.store.target);
    ShardPlan plan(options.store.describe(target, options.model_type,
                                          eagle3 ? "none" : options.data.filter,
                                          options.device.precision + options.storage.rounding()));
    const auto data = examples::read_samples(options.data, Tokenizer(options.store.target), filter,
                                             target.vocabulary);
    for (const auto& sample : data.samples) plan.add(sample);
    if (launcher.first()) examples::print_size(plan, options.store.output);
    launcher.run([&](auto world) {
      B backend = options.device.backend(launcher.threads(options.threads));
      Capture(std::move(world), backend, options, data.samples, plan).run();
    });
    if (launcher.first()) {
      data.print();
      std::printf("store: %s\n", options.store.output.string().c_str());
    }
    return 0;
  });
}
