#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "dflash/core/choices.hpp"

namespace examples {

/// A check of a flag's number that fails with a sentence; `kind` is what --help shows.
inline CLI::Validator number_check(const char* kind, const char* meaning, bool (*fits)(double)) {
  return CLI::Validator(
      [=](std::string& text) {
        double value = 0;
        const bool number = CLI::detail::lexical_cast(text, value);
        return number && fits(value) ? std::string() : text + " is not " + meaning;
      },
      kind);
}

inline CLI::Validator above_zero() {
  return number_check("POSITIVE", "a number above 0", [](double x) { return x > 0; });
}
inline CLI::Validator not_below_zero() {
  return number_check("NONNEGATIVE", "a number from 0 on", [](double x) { return x >= 0; });
}
inline CLI::Validator from_zero_to_one() {
  return number_check("SHARE", "a number from 0 to 1", [](double x) { return x >= 0 && x <= 1; });
}

/// A check that a flag names one of the choices.
template <class T, std::size_t N>
CLI::IsMember one_of(const dflash::Choices<T, N>& choices) {
  return CLI::IsMember(choices.names());
}

}  // namespace examples
