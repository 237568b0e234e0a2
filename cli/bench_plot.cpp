#include "cli/bench_plot.h"

#include <algorithm>
#include <set>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "graft/core/markup.h"

namespace graft::cli {

namespace {

// Pixels.
constexpr double kWidth = 1240;
constexpr double kLabelWidth = 400;
constexpr double kBarsLeft = kLabelWidth + 12;
constexpr double kBarsWidth = 400;  // up to 100 %
constexpr double kBarHeight = 12;
constexpr double kBarGap = 2;
constexpr double kGroupGap = 12;
constexpr double kTop = 76;
constexpr double kMostShare = 1.1;  // a bar beyond ends here, its number tells the rest
constexpr double kNumbersLeft = kBarsLeft + kMostShare * kBarsWidth + 10;

constexpr char kOwnColor[] = "#1f6feb";
constexpr char kPeerColor[] = "#b6bcc6";

std::string text_at(double x, double y, const std::string& style, std::string text) {
  // SVG knows no control characters, not even as entities.
  std::replace_if(
      text.begin(), text.end(),
      [](char letter) { return static_cast<unsigned char>(letter) < 0x20; }, ' ');
  return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" {}>{}</text>\n", x, y, style,
                     escape_html(text));
}

std::string bar(double y, double share, const char* color, const std::string& label) {
  const double width = std::min(share, kMostShare) * kBarsWidth;
  return fmt::format(
             "<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" rx=\"1.5\" "
             "fill=\"{}\"/>\n",
             kBarsLeft, y, width, kBarHeight, color) +
         text_at(kNumbersLeft, y + kBarHeight - 2, "class=\"value\"", label);
}

// The name and the shape need two lines where there is no peer.
double group_height(const BenchRow& row) {
  const double bars = static_cast<double>(1 + row.peers.size()) * (kBarHeight + kBarGap);
  return std::max(bars, 2 * kBarHeight + 4) + kGroupGap;
}

std::string group(const BenchRow& row, double y) {
  const double ceiling_us = row.ceiling_us();
  const auto label = [&](double median_us, const std::string& name) {
    return fmt::format("{:.0f} %  {:.1f} µs  {}", 100 * ceiling_us / median_us, median_us, name);
  };
  std::string out = text_at(kLabelWidth, y + kBarHeight - 2, "class=\"op\"", row.title());
  out += bar(y, ceiling_us / row.median_us, kOwnColor, label(row.median_us, "graft"));
  const std::string shape = fmt::format("{}, {}", row.shape, row.dtype);
  double below = y + kBarHeight + kBarGap;
  out += text_at(kLabelWidth, below + kBarHeight - 2, "class=\"shape\"", shape);
  for (const BenchPeer& peer : row.peers) {
    out += bar(below, ceiling_us / peer.median_us, kPeerColor, label(peer.median_us, peer.name));
    below += kBarHeight + kBarGap;
  }
  return out;
}

std::string header(const std::vector<BenchRow>& rows, double height) {
  std::set<std::string> machines;
  std::set<std::string> commits;
  for (const BenchRow& row : rows) {
    machines.insert(row.machine);
    commits.insert(row.commit);
  }
  std::string out = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0:.0f} {1:.0f}\" width=\"{0:.0f}\" "
      "height=\"{1:.0f}\" font-family=\"system-ui, sans-serif\" font-size=\"11\">\n"
      "<style>.op{{text-anchor:end;font-weight:600}}.shape{{text-anchor:end;fill:#57606a;font-size:"
      "10px}}"
      ".value{{fill:#24292f;font-size:10px}}.axis{{text-anchor:middle;fill:#57606a}}</style>\n"
      "<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
      kWidth, height);
  out +=
      text_at(16, 24, "font-size=\"16\" font-weight=\"600\"", "Share of what the machine could do");
  out += text_at(16, 42, "fill=\"#57606a\"",
                 fmt::format("{}; commit {}. 100 %: a copy of the same bytes, or the arithmetic at "
                             "the data sheet's peak where that takes longer.",
                             fmt::join(machines, " and "), fmt::join(commits, ", ")));
  for (int percent = 0; percent <= 100; percent += 25) {
    const double x = kBarsLeft + kBarsWidth * percent / 100;
    out += fmt::format(
        "<line x1=\"{0:.1f}\" x2=\"{0:.1f}\" y1=\"{1:.1f}\" y2=\"{2:.1f}\" "
        "stroke=\"{3}\" stroke-width=\"1\"/>\n",
        x, kTop - 6, height - 12, percent == 100 ? "#57606a" : "#e4e7eb");
    out += text_at(x, kTop - 10, "class=\"axis\"", fmt::format("{} %", percent));
  }
  return out;
}

}  // namespace

std::string plot_bench_rows(const std::vector<BenchRow>& rows) {
  double height = kTop + 16;
  for (const BenchRow& row : rows) {
    height += group_height(row);
  }
  std::string out = header(rows, height);
  double y = kTop;
  for (const BenchRow& row : rows) {
    out += group(row, y);
    y += group_height(row);
  }
  return out + "</svg>\n";
}

}  // namespace graft::cli
