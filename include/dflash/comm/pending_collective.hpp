#pragma once

#include <exception>
#include <memory>
#include <utility>

namespace dflash {

/// A collective on host memory that has started; see CommunicatorFor.
class PendingCollective {
 public:
  PendingCollective() = default;
  /// `finish()` is what is left to do. It owns what the other ranks still need of this one; gone
  /// without being called, it withdraws that.
  template <class Finish>
  explicit PendingCollective(Finish finish) : rest_(new Rest<Finish>(std::move(finish))) {}

  /// Returns when this rank has got its data, and the others what this one gave.
  void wait() {
    if (const auto rest = std::move(rest_)) rest->wait();
  }

 private:
  struct AnyRest {
    virtual ~AnyRest() = default;
    virtual void wait() = 0;
  };
  template <class Finish>
  struct Rest : AnyRest {
    explicit Rest(Finish what) : finish(std::move(what)) {}
    ~Rest() override {
      if (done || std::uncaught_exceptions() > exceptions) return;
      try {
        finish();
      } catch (...) {  // the job has failed: the next collective says so
      }
    }
    void wait() override {
      done = true;
      finish();
    }

    Finish finish;
    bool done = false;
    int exceptions = std::uncaught_exceptions();
  };
  std::unique_ptr<AnyRest> rest_;
};

}  // namespace dflash
