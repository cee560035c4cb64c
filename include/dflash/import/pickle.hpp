#pragma once

#include <cstdint>
#include <deque>
#include <limits>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "dflash/import/bytes.hpp"

namespace dflash {

/// Something that a pickle describes.
struct PickleNode {
  enum class Kind {
    none,
    boolean,
    integer,
    real,
    text,
    tuple,
    list,
    dict,        // items: key, value, key, value ...
    global,      // text: "module name"
    call,        // items: what is called, its arguments
    persistent,  // items: the id of something that lies elsewhere
    mark
  };
  Kind kind = Kind::none;
  std::int64_t integer = 0;
  double real = 0;
  std::string text = {};
  std::vector<const PickleNode*> items = {};
};

/// Reads Python's pickle format (protocol 2 and what torch.save uses of later ones) as the plain
/// description that it is: nothing is imported and nothing called, what would be is a node of its
/// own. Memory is bounded by the length of the pickle.
class Pickle {
 public:
  explicit Pickle(FileBytes bytes) : bytes_(std::move(bytes)) {
    while (root_ == nullptr) step(take<std::uint8_t>());
  }

  const PickleNode& root() const { return *root_; }

 private:
  using Kind = PickleNode::Kind;

  void step(std::uint8_t code) {
    switch (code) {
      case 0x80:  // PROTO
        take<std::uint8_t>();
        return;
      case 0x95:  // FRAME
        take<std::uint64_t>();
        return;
      case '.':
        root_ = pop();
        return;
      case '(':
        push({.kind = Kind::mark});
        return;
      case '0':
        pop();
        return;
      case 'N':
        push({});
        return;
      case 0x88:  // NEWTRUE
      case 0x89:  // NEWFALSE
        push({.kind = Kind::boolean, .integer = code == 0x88});
        return;
      case 'J':
        return integer(take<std::int32_t>());
      case 'K':
        return integer(take<std::uint8_t>());
      case 'M':
        return integer(take<std::uint16_t>());
      case 0x8a:  // LONG1
        return integer(long_integer());
      case 'G':
        push({.kind = Kind::real, .real = big_endian_real()});
        return;
      case 'X':
        return text(take<std::uint32_t>());
      case 0x8c:  // SHORT_BINUNICODE
        return text(take<std::uint8_t>());
      case 'c': {
        const std::string module = line();
        push({.kind = Kind::global, .text = module + " " + line()});
        return;
      }
      case 0x93: {  // STACK_GLOBAL
        const std::string &name = name_of(pop()), &module = name_of(pop());
        push({.kind = Kind::global, .text = module + " " + name});
        return;
      }
      default:
        containers(code);
    }
  }

  void containers(std::uint8_t code) {
    switch (code) {
      case '}':
        push({.kind = Kind::dict});
        return;
      case ']':
        push({.kind = Kind::list});
        return;
      case ')':
        push({.kind = Kind::tuple});
        return;
      case 't': {
        push({.kind = Kind::tuple, .items = pop_to_mark()});
        return;
      }
      case 0x85:  // TUPLE1, 2, 3
      case 0x86:
      case 0x87: {
        std::vector<const PickleNode*> items(std::size_t(code - 0x84));
        for (std::size_t i = items.size(); i-- > 0;) items[i] = pop();
        push({.kind = Kind::tuple, .items = std::move(items)});
        return;
      }
      case 's': {
        const PickleNode *value = pop(), *key = pop();
        return add_items(Kind::dict, {key, value});
      }
      case 'u':
        return add_items(Kind::dict, pop_to_mark());
      case 'a':
        return add_items(Kind::list, {pop()});
      case 'e':
        return add_items(Kind::list, pop_to_mark());
      case 'Q':
        push({.kind = Kind::persistent, .items = {pop()}});
        return;
      case 'R': {
        const PickleNode *arguments = pop(), *called = pop();
        if (called->kind == Kind::global && called->text == "collections OrderedDict")
          push({.kind = Kind::dict});
        else
          push({.kind = Kind::call, .items = {called, arguments}});
        return;
      }
      case 'b':  // BUILD: attributes of an object, which tensors and containers have no use for
        pop();
        return;
      default:
        memory(code);
    }
  }

  void memory(std::uint8_t code) {
    switch (code) {
      case 'q':
        memo_[take<std::uint8_t>()] = top();
        return;
      case 'r':
        memo_[take<std::uint32_t>()] = top();
        return;
      case 0x94:  // MEMOIZE
        memo_.emplace(std::uint32_t(memo_.size()), top());
        return;
      case 'h':
        return recall(take<std::uint8_t>());
      case 'j':
        return recall(take<std::uint32_t>());
      default:
        bytes_.fail("its pickle has operation " + std::to_string(code) + " at byte " +
                    std::to_string(at_ - 1) + ", which files of tensors do not need");
    }
  }

  template <class T>
  T take() {
    const T value = bytes_.number<T>(at_, "its pickle");
    at_ += sizeof(T);
    return value;
  }
  void integer(std::int64_t value) { push({.kind = Kind::integer, .integer = value}); }
  void text(std::uint64_t size) {
    push({.kind = Kind::text, .text = bytes_.text(at_, size, "its pickle")});
    at_ += size;
  }
  std::int64_t long_integer() {
    const auto size = take<std::uint8_t>();
    if (size > 8) bytes_.fail("its pickle has an integer of more than 64 bits");
    std::uint64_t value = 0;
    for (int i = 0; i < int(size); ++i) value |= std::uint64_t(take<std::uint8_t>()) << (8 * i);
    const int unused = 64 - 8 * int(size);
    return size == 0 ? 0 : std::int64_t(value << unused) >> unused;
  }
  double big_endian_real() {
    std::uint64_t bits = 0;
    for (int i = 0; i < 8; ++i) bits = bits << 8 | take<std::uint8_t>();
    double value;
    static_assert(std::numeric_limits<double>::is_iec559);
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }
  std::string line() {
    std::string text;
    for (char c = take<char>(); c != '\n'; c = take<char>()) text += c;
    return text;
  }
  /// Recalled texts may be long, and named often.
  const std::string& name_of(const PickleNode* node) const {
    if (node->kind != Kind::text) bytes_.fail("its pickle names something that is no text");
    if (node->text.size() > 256) bytes_.fail("its pickle has a name of more than 256 bytes");
    return node->text;
  }

  void push(PickleNode node) {
    nodes_.push_back(std::move(node));
    stack_.push_back(&nodes_.back());
  }
  PickleNode* top() const {
    if (stack_.empty() || stack_.back()->kind == Kind::mark)
      bytes_.fail("its pickle takes what it has not put");
    return stack_.back();
  }
  PickleNode* pop() {
    PickleNode* const node = top();
    stack_.pop_back();
    return node;
  }
  std::vector<const PickleNode*> pop_to_mark() {
    std::size_t first = stack_.size();
    while (first > 0 && stack_[first - 1]->kind != Kind::mark) --first;
    if (first == 0) bytes_.fail("its pickle takes what it has not put");
    std::vector<const PickleNode*> items(stack_.begin() + std::ptrdiff_t(first), stack_.end());
    stack_.resize(first - 1);
    return items;
  }
  void add_items(Kind kind, const std::vector<const PickleNode*>& items) {
    PickleNode* const to = top();
    if (to->kind != kind || (kind == Kind::dict && items.size() % 2 != 0))
      bytes_.fail("its pickle adds items to something that has none");
    to->items.insert(to->items.end(), items.begin(), items.end());
  }
  void recall(std::uint32_t place) {
    const auto found = memo_.find(place);
    if (found == memo_.end()) bytes_.fail("its pickle recalls what it has not kept");
    stack_.push_back(found->second);
  }

  FileBytes bytes_;
  std::uint64_t at_ = 0;
  std::deque<PickleNode> nodes_;  // own all, so that a node may contain itself
  std::vector<PickleNode*> stack_;
  std::map<std::uint32_t, PickleNode*> memo_;
  const PickleNode* root_ = nullptr;
};

}  // namespace dflash
