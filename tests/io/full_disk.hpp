#pragma once

#include <sched.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <string>

/// Runs f in a child process and returns its exit status, which is f's result.
template <class F>
int in_child(F&& f) {
  const pid_t child = ::fork();
  if (child == 0) {
    int result = 101;
    try {
      result = f();
    } catch (...) {
    }
    ::_exit(result);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/// The same where no file can grow beyond `bytes`, which fails much as a full disk does.
template <class F>
int with_file_limit(long bytes, F&& f) {
  return in_child([&] {
    std::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{rlim_t(bytes), rlim_t(bytes)};
    return ::setrlimit(RLIMIT_FSIZE, &limit) == 0 ? f() : 100;
  });
}

inline constexpr int no_small_disk = 77;

/// The same with a file system of `bytes` bytes at a folder, which nobody else sees; no_small_disk
/// where that is not allowed.
template <class F>
int with_small_disk(const std::filesystem::path& folder, long bytes, F&& f) {
  return in_child([&] {
    const std::string size = "size=" + std::to_string(bytes);
    const bool mounted =
        (::unshare(CLONE_NEWNS) == 0 || ::unshare(CLONE_NEWUSER | CLONE_NEWNS) == 0) &&
        ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0 &&
        ::mount("none", folder.c_str(), "tmpfs", 0, size.c_str()) == 0;
    return mounted ? f() : no_small_disk;
  });
}
