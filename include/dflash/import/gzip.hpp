#pragma once

#include <zlib.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "dflash/import/bytes.hpp"

namespace dflash {

/// Whether a file begins as gzip's do (RFC 1952).
inline bool is_gzip(const FileBytes& file) {
  return file.size() >= 2 && file.number<std::uint16_t>(0, "its first bytes") == 0x8b1f;
}

/// What a gzip file holds. Error if it is cut or its checksum is wrong.
inline std::vector<std::byte> gunzip(const FileBytes& file) {
  z_stream stream{};
  constexpr int gzip_only = 16;
  if (inflateInit2(&stream, 15 + gzip_only) != Z_OK) file.fail("zlib could not start");
  struct End {
    z_stream* stream;
    ~End() { inflateEnd(stream); }
  } const end{&stream};
  const auto in = file.range(0, std::uint64_t(file.size()), "its data");
  std::vector<std::byte> out;
  constexpr std::size_t most = std::numeric_limits<uInt>::max(), piece = 1 << 20;
  std::size_t read = 0, written = 0;
  for (int status = Z_OK; status != Z_STREAM_END;) {
    if (written == out.size()) out.resize(std::max(piece, 2 * out.size()));
    const std::size_t given = std::min(most, in.size() - read),
                      room = std::min(most, out.size() - written);
    // zlib's interface has no const, but it does not write there.
    stream.next_in = reinterpret_cast<Bytef*>(const_cast<std::byte*>(in.data() + read));
    stream.avail_in = uInt(given);
    stream.next_out = reinterpret_cast<Bytef*>(out.data() + written);
    stream.avail_out = uInt(room);
    status = inflate(&stream, Z_NO_FLUSH);
    read += given - stream.avail_in;
    written += room - stream.avail_out;
    if (status == Z_BUF_ERROR || (status == Z_OK && read == in.size() && stream.avail_out > 0))
      file.fail("its compressed data are cut");
    if (status != Z_OK && status != Z_STREAM_END) file.fail("its compressed data are damaged");
  }
  out.resize(written);
  return out;
}

}  // namespace dflash
