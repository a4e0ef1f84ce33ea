#include "metrics/process_collector.h"

#include <dirent.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <optional>
#include <sstream>

#include "prometheus/metric_family.h"

namespace weir::metrics {
namespace {

// Resident set in bytes: the second field of statm, in pages.
std::optional<double> ResidentBytes() {
  std::ifstream statm("/proc/self/statm");
  double total = 0, resident = 0;
  if (!(statm >> total >> resident)) return std::nullopt;
  return resident * static_cast<double>(sysconf(_SC_PAGESIZE));
}

std::optional<double> CpuSeconds() {
  rusage usage{};
  if (getrusage(RUSAGE_SELF, &usage) != 0) return std::nullopt;
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) * 1e-6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

std::optional<double> OpenFiles() {
  DIR* dir = opendir("/proc/self/fd");
  if (dir == nullptr) return std::nullopt;
  int count = 0;
  while (readdir(dir) != nullptr) ++count;
  closedir(dir);
  return std::max(0, count - 3);  // ".", ".." and the handle that reads them
}

// Field 22 of stat, in clock ticks since boot, on top of the boot time.
std::optional<double> StartTime() {
  std::ifstream stat("/proc/self/stat");
  std::string line;
  std::getline(stat, line);
  const size_t name_end = line.rfind(')');  // the name may hold anything
  if (name_end == std::string::npos) return std::nullopt;
  std::istringstream fields(line.substr(name_end + 1));
  std::string field;
  for (int i = 3; i <= 22; ++i) {
    if (!(fields >> field)) return std::nullopt;
  }
  timespec now{}, since_boot{};
  if (clock_gettime(CLOCK_REALTIME, &now) != 0 || clock_gettime(CLOCK_BOOTTIME, &since_boot) != 0) {
    return std::nullopt;
  }
  const auto seconds = [](const timespec& t) {
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
  };
  std::istringstream ticks_text(field);
  double ticks = 0;
  if (!(ticks_text >> ticks)) return std::nullopt;
  return seconds(now) - seconds(since_boot) + ticks / static_cast<double>(sysconf(_SC_CLK_TCK));
}

struct Source {
  const char* name;
  const char* help;
  prometheus::MetricType type;
  std::optional<double> (*read)();
};

constexpr Source kSources[] = {
    {"process_cpu_seconds_total", "User and system CPU time spent, in seconds.",
     prometheus::MetricType::Counter, CpuSeconds},
    {"process_open_fds", "Open file descriptors.", prometheus::MetricType::Gauge, OpenFiles},
    {"process_resident_memory_bytes", "Resident memory, in bytes.", prometheus::MetricType::Gauge,
     ResidentBytes},
    {"process_start_time_seconds", "Start of the process, in seconds since the epoch.",
     prometheus::MetricType::Gauge, StartTime},
};

}  // namespace

std::vector<prometheus::MetricFamily> ProcessCollector::Collect() const {
  std::vector<prometheus::MetricFamily> families;
  for (const Source& source : kSources) {
    const std::optional<double> value = source.read();
    if (!value) continue;
    prometheus::ClientMetric metric;
    if (source.type == prometheus::MetricType::Counter) {
      metric.counter.value = *value;
    } else {
      metric.gauge.value = *value;
    }
    families.push_back({source.name, source.help, source.type, {metric}});
  }
  return families;
}

std::vector<std::pair<std::string, std::string>> ProcessCollector::Families() {
  std::vector<std::pair<std::string, std::string>> families;
  for (const Source& source : kSources) families.emplace_back(source.name, source.help);
  return families;
}

}  // namespace weir::metrics
