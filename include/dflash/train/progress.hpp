#pragma once

#include <unistd.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <ostream>
#include <string>
#include <string_view>
#include <utility>

#include "dflash/core/config.hpp"
#include "dflash/train/training_log.hpp"

namespace dflash {

/// Seconds on a clock that never jumps.
inline double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// Whether people watch: rewriting a line is of use then.
inline bool is_terminal(std::FILE* stream) { return ::isatty(::fileno(stream)) == 1; }

/// A time span for people, such as "42 s", "3 min 05 s" or "2 h 07 min".
inline std::string duration_text(double seconds) {
  const auto whole = static_cast<long long>(std::ceil(std::fmax(seconds, 0)));
  char text[40];
  if (whole < 60)
    std::snprintf(text, sizeof text, "%lld s", whole);
  else if (whole < 3600)
    std::snprintf(text, sizeof text, "%lld min %02lld s", whole / 60, whole % 60);
  else
    std::snprintf(text, sizeof text, "%lld h %02lld min", whole / 3600, whole / 60 % 60);
  return text;
}

/// A rate for people, such as "87", "5.2k" or "1.3M".
inline std::string rate_text(double rate) {
  const bool small = rate < 999.5, middle = rate < 999.95e3;
  char text[32];
  std::snprintf(text, sizeof text, small ? "%.3g%s" : "%.1f%s",
                small ? rate : rate / (middle ? 1e3 : 1e6),
                small    ? ""
                : middle ? "k"
                         : "M");
  return text;
}

/// One line that tells how far a long work is: rewritten in place on a terminal, else a new line,
/// less often.
class ProgressLine {
 public:
  ProgressLine(std::ostream& out, bool terminal) : out_(&out), terminal_(terminal) {}
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;
  ~ProgressLine() { finish(); }

  bool terminal() const { return terminal_; }

  /// Whether enough time has passed since the last line to show another.
  bool due(double now) const { return now - shown_at_ >= (terminal_ ? 0.1 : 10.0); }

  void show(const std::string& text, double now) {
    shown_at_ = now;
    if (terminal_)
      *out_ << "\r\033[K" << text << std::flush;
    else
      *out_ << text << std::endl;
    open_ = terminal_;
  }

  /// Ends the rewritten line, so that other output may follow.
  void finish() {
    if (open_) *out_ << std::endl;
    open_ = false;
  }

 private:
  std::ostream* out_;
  bool terminal_, open_ = false;
  double shown_at_ = -INFINITY;
};

/// Progress of training: step, loss, accuracy, expected acceptance, tokens per second, time left.
class TrainingProgress {
 public:
  /// Of a run that has done `done` of `total` optimizer steps before it starts now.
  TrainingProgress(std::ostream& out, bool terminal, index_t total, index_t done = 0,
                   double now = seconds_now())
      : line_(out, terminal), total_(total), first_(done), start_(now) {}

  /// On a terminal at every step, elsewhere where a log line is due (`log`).
  void show(const TrainingRecord& record, bool log, double now = seconds_now()) {
    const bool last = record.step >= total_;
    if (!last && !(line_.terminal() ? line_.due(now) : log)) return;
    char text[160];
    std::snprintf(text, sizeof text,
                  "step %td/%td  loss %.4f  accuracy %.3f  acceptance %.3f  %s tokens/s",
                  record.step, total_, record.loss, record.accuracy, record.acceptance,
                  rate_text(record.tokens_per_second).c_str());
    const double each = (now - start_) / double(record.step - first_);
    const std::string time = last ? duration_text(now - start_) + " in all"
                                  : duration_text(each * double(total_ - record.step)) + " left";
    line_.show(record.step > first_ ? text + ("  " + time) : text, now);
    if (last) line_.finish();
  }

  void finish() { line_.finish(); }

 private:
  ProgressLine line_;
  index_t total_, first_;
  double start_;
};

/// Progress of work that is counted, such as captured samples: done, total, rate, time left.
class CountProgress {
 public:
  /// `unit` such as "samples"; `done` of them were there before the work starts now.
  CountProgress(std::ostream& out, bool terminal, std::string unit, index_t total, index_t done = 0,
                double now = seconds_now())
      : line_(out, terminal), unit_(std::move(unit)), total_(total), first_(done), start_(now) {}

  /// Shows a line if one is due; always at the end. `note` follows the numbers.
  void show(index_t done, std::string_view note = {}, double now = seconds_now()) {
    const bool last = done >= total_;
    if (!last && !line_.due(now)) return;
    const double rate = double(done - first_) / std::fmax(now - start_, 1e-9);
    std::string text = std::to_string(done) + "/" + std::to_string(total_) + " " + unit_;
    if (done > first_) {
      text += "  " + rate_text(rate) + "/s  ";
      text += last ? duration_text(now - start_) + " in all"
                   : duration_text(double(total_ - done) / rate) + " left";
    }
    if (!note.empty()) text += "  " + std::string(note);
    line_.show(text, now);
    if (last) line_.finish();
  }

  void finish() { line_.finish(); }

 private:
  ProgressLine line_;
  std::string unit_;
  index_t total_, first_;
  double start_;
};

}  // namespace dflash
