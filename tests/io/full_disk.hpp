#pragma once

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>

/// Runs f in a child process in which no file can grow beyond `bytes`, as on a full disk; returns
/// its exit status, which is f's result.
template <class F>
int with_file_limit(long bytes, F&& f) {
  const pid_t child = ::fork();
  if (child == 0) {
    std::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{rlim_t(bytes), rlim_t(bytes)};
    int result = 100;
    if (::setrlimit(RLIMIT_FSIZE, &limit) == 0) {
      try {
        result = f();
      } catch (...) {
        result = 101;
      }
    }
    ::_exit(result);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}
