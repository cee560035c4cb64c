#pragma once

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "dflash/core/config.hpp"
#include "dflash/core/error.hpp"
#include "dflash/io/atomic_file.hpp"

namespace dflash {

/// What a run tells about its last optimizer steps.
struct TrainingRecord {
  index_t step = 0, epoch = 0;  // optimizer steps done, and the epoch they are in
  double loss = 0, accuracy = 0;
  double acceptance = 0;  // expected acceptance length
  double grad_norm = 0;   // before clipping
  double learning_rate = 0, tokens_per_second = 0;
  index_t skipped_steps = 0;  // of these: the gradient was not finite, or no slot supervised
};

/// `log.jsonl` in the output folder: one JSON object per line. Numbers that are not finite are
/// null.
class TrainingLog {
 public:
  /// Goes on after `resumed_step`: lines of later steps, and a last line that was cut off, are
  /// dropped. 0 starts a new log.
  TrainingLog(const std::filesystem::path& output, index_t resumed_step)
      : path_(output / "log.jsonl") {
    write_file(path_, kept(path_, resumed_step));
    file_.open(path_, std::ios::app | std::ios::binary);
    if (!file_) throw Error("cannot open " + path_.string());
  }

  void write(const TrainingRecord& record) {
    nlohmann::ordered_json line{{"step", record.step},
                                {"epoch", record.epoch},
                                {"loss", record.loss},
                                {"accuracy", record.accuracy},
                                {"acceptance", record.acceptance},
                                {"grad_norm", record.grad_norm},
                                {"learning_rate", record.learning_rate},
                                {"tokens_per_second", record.tokens_per_second}};
    if (record.skipped_steps > 0) line["skipped_steps"] = record.skipped_steps;
    file_ << line.dump() << '\n' << std::flush;
    if (!file_) throw Error("cannot write " + path_.string());
  }

 private:
  static std::string kept(const std::filesystem::path& path, index_t last_step) {
    std::string text, line;
    if (last_step <= 0) return text;
    std::ifstream file(path, std::ios::binary);
    while (std::getline(file, line)) {
      const auto json = nlohmann::json::parse(line, nullptr, false);
      if (!json.is_object() || !json.contains("step") || !json["step"].is_number_integer())
        continue;
      if (json["step"].get<index_t>() <= last_step) text += line + '\n';
    }
    return text;
  }

  std::filesystem::path path_;
  std::ofstream file_;
};

}  // namespace dflash
