#pragma once

#include <array>
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "dflash/core/error.hpp"

namespace dflash {

/// A value and its name in flags and files.
template <class T>
struct Choice {
  std::string_view name;
  T value;
};

/// All values of a kind that flags and files can name.
template <class T, std::size_t N>
struct Choices {
  std::string_view kind;
  std::array<Choice<T>, N> all;

  /// The value of that name; an Error lists the known ones.
  T named(std::string_view name) const {
    for (const Choice<T>& choice : all)
      if (choice.name == name) return choice.value;
    std::string known;
    for (std::size_t i = 0; i < N; ++i)
      known += (i == 0 ? "" : i + 1 < N ? ", " : " and ") + std::string(all[i].name);
    throw Error(std::string(kind) + " '" + std::string(name) + "' is unknown; known are " + known);
  }

  /// The name of a value, empty if it has none.
  constexpr std::string_view name_of(T value) const {
    for (const Choice<T>& choice : all)
      if (choice.value == value) return choice.name;
    return {};
  }

  constexpr std::array<T, N> values() const {
    std::array<T, N> values{};
    for (std::size_t i = 0; i < N; ++i) values[i] = all[i].value;
    return values;
  }
  std::vector<std::string> names() const {
    std::vector<std::string> names;
    for (const Choice<T>& choice : all) names.emplace_back(choice.name);
    return names;
  }
};

template <class T, std::size_t N>
constexpr Choices<T, N> choices(std::string_view kind, const Choice<T> (&all)[N]) {
  return {kind, std::to_array(all)};
}

}  // namespace dflash
