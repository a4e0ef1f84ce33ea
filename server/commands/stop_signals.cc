#include "server/commands/stop_signals.h"

#include <signal.h>
#include <unistd.h>

#include <condition_variable>
#include <cstdio>
#include <mutex>
#include <thread>

namespace weir::server {

struct StopSignals::State {
  std::string command;
  std::mutex mutex;
  std::condition_variable changed;
  bool ready = false;
  int signal = 0;
  bool hangup = false;

  void Take(int received) {
    std::lock_guard<std::mutex> lock(mutex);
    if (received == SIGHUP) {  // while starting: everything is read anyway
      hangup = ready;
      changed.notify_all();
      return;
    }
    if (!ready || signal != 0) {
      if (signal != 0) std::fprintf(stderr, "%s: second signal: ending now\n", command.c_str());
      _exit(128 + received);
    }
    signal = received;
    changed.notify_all();
  }
};

StopSignals::StopSignals(const std::string& command) : state_(std::make_shared<State>()) {
  state_->command = command;
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGHUP);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  // Waits for signals until the process ends, hence detached.
  std::thread([state = state_, set] {
    while (true) {
      int signal = 0;
      if (sigwait(&set, &signal) == 0) state->Take(signal);
    }
  }).detach();
}

void StopSignals::Ready() {
  std::lock_guard<std::mutex> lock(state_->mutex);
  state_->ready = true;
}

int StopSignals::Wait(const std::function<void()>& on_hangup) {
  std::unique_lock<std::mutex> lock(state_->mutex);
  while (true) {
    state_->changed.wait(lock, [this] { return state_->signal != 0 || state_->hangup; });
    if (state_->signal != 0) return state_->signal;
    state_->hangup = false;
    lock.unlock();
    on_hangup();
    lock.lock();
  }
}

}  // namespace weir::server
