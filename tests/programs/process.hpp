#pragma once

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "io/temporary_folder.hpp"

/// What a program left behind.
struct Outcome {
  int status = 0;  // its exit status, or 128 + the signal that ended it
  std::string out, err;
};

/// One of the example programs, running as a process of its own.
class Process {
 public:
  /// With a limit, no file can grow beyond so many bytes: writing fails much as on a full disk.
  Process(const std::string& program, const std::vector<std::string>& arguments,
          std::optional<long> largest_file = {}) {
    const auto path = std::filesystem::path(DFLASH_PROGRAMS) / program;
    std::vector<std::string> words{path.string()};
    words.insert(words.end(), arguments.begin(), arguments.end());
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    const int out = opened("out"), err = opened("err");
    child_ = ::fork();
    if (child_ == 0) {
      ::dup2(out, STDOUT_FILENO);
      ::dup2(err, STDERR_FILENO);
      if (largest_file) {
        const rlimit limit{rlim_t(*largest_file), rlim_t(*largest_file)};
        std::signal(SIGXFSZ, SIG_IGN);
        ::setrlimit(RLIMIT_FSIZE, &limit);
      }
      ::execv(argv[0], argv.data());
      ::_exit(127);
    }
    ::close(out);
    ::close(err);
    if (child_ < 0) throw std::runtime_error("cannot start " + path.string());
  }
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;
  ~Process() {
    if (child_ <= 0) return;
    kill();
    wait();
  }

  /// Whether it has ended by itself or by a signal.
  bool ended() {
    if (child_ > 0 && ::waitpid(child_, &status_, WNOHANG) == child_) child_ = 0;
    return child_ == 0;
  }

  /// Ends it at once, wherever it is.
  void kill() const {
    if (child_ > 0) ::kill(child_, SIGKILL);
  }

  Outcome wait() {
    if (child_ > 0) ::waitpid(child_, &status_, 0);
    child_ = 0;
    return {WIFEXITED(status_) ? WEXITSTATUS(status_) : 128 + WTERMSIG(status_),
            content_of(streams_ / "out"), content_of(streams_ / "err")};
  }

 private:
  int opened(const char* stream) const {
    return ::open((streams_ / stream).c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  }

  TemporaryFolder streams_;
  pid_t child_ = 0;
  int status_ = 0;
};

/// Runs a program to its end.
inline Outcome run(const std::string& program, const std::vector<std::string>& arguments) {
  return Process(program, arguments).wait();
}
