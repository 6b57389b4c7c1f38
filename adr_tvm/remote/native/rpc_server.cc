// An RPC server for boards without Python: TVM's runtime, which has the protocol, behind a socket.
//
//     adr_rpc_server [--host ADDRESS] [--port N] [--threads N] [--tracker HOST:PORT --key NAME [--custom-addr ADDRESS]]
//
// One client at a time, each in a process of its own that ends with it: a kernel that crashes takes nothing along. Whoever
// may connect may run any code here, so the default address is 127.0.0.1. Handshake and tracker messages are those of
// TVM 0.27's Python server: [magic, size of key, key], and [size, JSON] to and from a tracker.
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>

#include <arpa/inet.h>
#include <csignal>
#include <ftw.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cctype>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>

namespace {

constexpr int32_t kMagic = 0xFF271, kMismatch = kMagic + 2, kTrackerMagic = 0x2F271;
constexpr int32_t kMostBytes = 1 << 20;            // of a key or of a tracker's answer
constexpr int kPingSeconds = 2, kUnusedPings = 3;  // after which a key that a client took, but did not use, is replaced
constexpr int kHandshakeSeconds = 10;
enum TrackerCode { kPut = 3, kUpdateInfo = 5, kPendingKeys = 7 };

struct Options {
  std::string host = "127.0.0.1", key, tracker_host, tracker_port, custom_addr;
  int port = 9090;
};

[[noreturn]] void Fail(const std::string& what) { throw std::runtime_error(what); }

[[noreturn]] void FailErrno(const std::string& what) { Fail(what + ": " + std::strerror(errno)); }

/** A file descriptor that is closed at the end. */
class Socket {
 public:
  explicit Socket(int fd = -1) : fd_(fd) {}
  Socket(Socket&& other) noexcept : fd_(other.fd_) { other.fd_ = -1; }
  Socket& operator=(Socket&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Socket() {
    if (fd_ >= 0) close(fd_);
  }
  int fd() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }

  void SetTimeout(int seconds) const {
    timeval time{seconds, 0};
    setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time);
    setsockopt(fd_, SOL_SOCKET, SO_SNDTIMEO, &time, sizeof time);
  }
  void Send(const void* data, size_t size) const {
    for (const char* at = static_cast<const char*>(data); size > 0;) {
      ssize_t sent = send(fd_, at, size, MSG_NOSIGNAL);
      if (sent < 0 && errno == EINTR) continue;
      if (sent <= 0) FailErrno("cannot send");
      at += sent, size -= sent;
    }
  }
  void Receive(void* data, size_t size) const {
    for (char* at = static_cast<char*>(data); size > 0;) {
      ssize_t got = recv(fd_, at, size, 0);
      if (got < 0 && errno == EINTR) continue;
      if (got == 0) Fail("the other side hung up");
      if (got < 0) FailErrno("cannot receive");
      at += got, size -= got;
    }
  }
  void SendInt(int32_t value) const { Send(&value, sizeof value); }  // both sides are little endian
  int32_t ReceiveInt() const {
    int32_t value;
    Receive(&value, sizeof value);
    return value;
  }
  void SendText(const std::string& text) const {
    SendInt(static_cast<int32_t>(text.size()));
    Send(text.data(), text.size());
  }
  std::string ReceiveText() const {
    int32_t size = ReceiveInt();
    if (size < 0 || size > kMostBytes) Fail("a message of " + std::to_string(size) + " bytes");
    std::string text(size, '\0');
    Receive(text.data(), text.size());
    return text;
  }

 private:
  int fd_;
};

/** Calls `use(socket, address)` on the addresses of a name until one succeeds, and returns that socket. */
template <typename Use>
Socket OpenSocket(const std::string& host, const std::string& port, int flags, const std::string& what, Use use) {
  addrinfo hints{}, *found = nullptr;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = flags;
  int error = getaddrinfo(host.c_str(), port.c_str(), &hints, &found);
  if (error) Fail(what + " " + host + ":" + port + ": " + gai_strerror(error));
  for (addrinfo* each = found; each; each = each->ai_next) {
    Socket socket(::socket(each->ai_family, SOCK_STREAM | SOCK_CLOEXEC, each->ai_protocol));
    if (socket && use(socket.fd(), each) == 0) {
      freeaddrinfo(found);
      return socket;
    }
  }
  freeaddrinfo(found);
  FailErrno(what + " " + host + ":" + port);
}

Socket Listen(const Options& options) {
  return OpenSocket(options.host, std::to_string(options.port), AI_PASSIVE, "cannot listen on",
                    [](int fd, addrinfo* address) {
                      int on = 1;
                      setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
                      return bind(fd, address->ai_addr, address->ai_addrlen) || listen(fd, 4);
                    });
}

int PortOf(const Socket& socket) {
  sockaddr_storage address{};
  socklen_t size = sizeof address;
  if (getsockname(socket.fd(), reinterpret_cast<sockaddr*>(&address), &size)) FailErrno("getsockname");
  return ntohs(address.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6&>(address).sin6_port
                                             : reinterpret_cast<sockaddr_in&>(address).sin_port);
}

/** The place in a tracker's queue; without a tracker the key that clients must name is the server's own. */
class Registration {
 public:
  Registration(const Options& options, int port) : options_(options), port_(port), match_key_(options.key) {}

  bool has_tracker() const { return !options_.tracker_host.empty(); }
  const std::string& match_key() const { return match_key_; }

  /** Offer the board to the next client. */
  void Offer() {
    if (!has_tracker()) return;
    if (!tracker_) Connect();
    match_key_ = options_.key + ":" + std::to_string(std::random_device()());
    Ask("[" + std::to_string(kPut) + ", \"" + options_.key + "\", [" + std::to_string(port_) + ", \"" + match_key_ +
        "\"], " + CustomAddress() + "]");
    unused_ = 0;
  }
  /** While nobody comes: see whether the tracker lives, and whether a client took the key and went away. */
  void Ping() {
    if (!tracker_) return;
    bool pending = Ask("[" + std::to_string(kPendingKeys) + "]").find('"' + match_key_ + '"') != std::string::npos;
    unused_ = pending ? 0 : unused_ + 1;
    if (unused_ > kUnusedPings) Offer();
  }
  void Disconnect() { tracker_ = Socket(); }

 private:
  void Connect() {
    Socket socket = OpenSocket(options_.tracker_host, options_.tracker_port, 0, "no tracker at",
                               [](int fd, addrinfo* to) { return connect(fd, to->ai_addr, to->ai_addrlen); });
    socket.SetTimeout(kHandshakeSeconds);
    socket.SendInt(kTrackerMagic);
    if (socket.ReceiveInt() != kTrackerMagic) Fail(options_.tracker_host + " is not a tracker");
    tracker_ = std::move(socket);
    Ask("[" + std::to_string(kUpdateInfo) + ", {\"key\": \"server:" + options_.key + "\", \"addr\": [" +
        CustomAddress() + ", " + std::to_string(port_) + "]}]");
  }
  std::string Ask(const std::string& json) {
    tracker_.SendText(json);
    return tracker_.ReceiveText();
  }
  std::string CustomAddress() const {
    return options_.custom_addr.empty() ? "null" : '"' + options_.custom_addr + '"';
  }

  const Options& options_;
  int port_, unused_ = 0;
  std::string match_key_;
  Socket tracker_;
};

/** The handshake, and the options that a client gives behind its key; false if it is none of ours. */
bool Greet(const Socket& client, const Options& options, const std::string& match_key, std::string* client_options) {
  client.SetTimeout(kHandshakeSeconds);
  if (client.ReceiveInt() != kMagic) return false;
  std::string said = client.ReceiveText(), key = said.substr(0, said.find(' '));
  if (key != "client:" + match_key) {
    client.SendInt(kMismatch);
    Fail("it has another key");
  }
  *client_options = said.substr(key.size());
  client.SendInt(kMagic);
  client.SendText("server:" + options.key);
  client.SetTimeout(0);
  int on = 1;  // a client whose machine died is noticed
  setsockopt(client.fd(), SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
  setsockopt(client.fd(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  return true;
}

/** The client's process: what it asks for is done by TVM's runtime, in a folder of its own. */
[[noreturn]] void Serve(int fd, const std::string& folder) {
  using tvm::ffi::Function;
  int code = 1;
  try {
    auto place = [folder](const std::string& name) {
      if (name.empty() || name[0] == '.' || name.find('/') != std::string::npos) Fail("'" + name + "' is no file name");
      return folder + "/" + name;
    };
    Function::SetGlobal("tvm.rpc.server.workpath", Function::FromTyped([place](tvm::ffi::String name) {
                          return tvm::ffi::String(place(name));
                        }));
    Function::SetGlobal("tvm.rpc.server.load_module", Function::FromTyped([place](tvm::ffi::String name) {
                          return tvm::ffi::Module::LoadFromFile(place(name));
                        }));
    Function::GetGlobalRequired("rpc.ServerLoop")(fd);
    code = 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "the session ended: %s\n", error.what());
  }
  std::fflush(nullptr);
  _exit(code);
}

/** Waits for a client's process; kills it after `seconds` (0: never). */
void Await(pid_t child, double seconds) {
  const time_t start = time(nullptr);
  for (int status;;) {
    pid_t ended = waitpid(child, &status, seconds > 0 ? WNOHANG : 0);
    if (ended == child) {
      if (WIFSIGNALED(status)) std::fprintf(stderr, "the session ended by signal %d\n", WTERMSIG(status));
      return;
    }
    if (ended < 0 && errno != EINTR) FailErrno("waitpid");
    if (seconds > 0 && difftime(time(nullptr), start) > seconds) kill(child, SIGKILL), seconds = 0;
    if (seconds > 0) usleep(50000);
  }
}

int Remove(const char* path, const struct stat*, int, FTW*) { return remove(path); }

void Session(const Socket& listener, Socket client, const std::string& client_options) {
  const char* temporary = std::getenv("TMPDIR");
  std::string folder = std::string(temporary ? temporary : "/tmp") + "/adr_rpc_XXXXXX";
  if (!mkdtemp(folder.data())) FailErrno(folder);
  const size_t at = client_options.find("-timeout=");
  const double seconds = at == std::string::npos ? 0 : std::atof(client_options.c_str() + at + 9);
  const pid_t child = fork();
  if (child < 0) FailErrno("fork");
  if (child == 0) {
    close(listener.fd());
    Serve(client.fd(), folder);
  }
  client = Socket();
  Await(child, seconds);
  nftw(folder.c_str(), Remove, 8, FTW_DEPTH | FTW_PHYS);
}

/** The next client whose handshake is right, with the options that it gave. */
Socket NextClient(const Socket& listener, const Options& options, Registration* registration, std::string* said) {
  while (true) {
    pollfd waiting{listener.fd(), POLLIN, 0};
    if (poll(&waiting, 1, registration->has_tracker() ? kPingSeconds * 1000 : -1) == 0) {
      registration->Ping();
      continue;
    }
    Socket client(accept(listener.fd(), nullptr, nullptr));
    if (!client) continue;
    try {
      if (Greet(client, options, registration->match_key(), said)) return client;
    } catch (const std::exception& error) {
      std::fprintf(stderr, "turned a client away: %s\n", error.what());
    }
  }
}

bool IsName(const std::string& text) {
  for (char c : text) {
    if (!std::isalnum(static_cast<unsigned char>(c)) && !std::strchr("._-:", c)) return false;
  }
  return true;
}

Options Parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; i += 2) {
    const std::string flag = argv[i];
    if (i + 1 == argc) Fail(flag + " needs a value");
    const std::string value = argv[i + 1];
    if (!IsName(value)) Fail(flag + " is '" + value + "', expected letters, digits and . _ - :");
    if (flag == "--host") {
      options.host = value;
    } else if (flag == "--port") {
      options.port = std::atoi(value.c_str());
      if (options.port < 0 || options.port > 65535) Fail("--port is " + value + ", expected 0 to 65535");
    } else if (flag == "--threads") {
      if (std::atoi(value.c_str()) < 1) Fail("--threads is " + value + ", expected 1 or more");
      setenv("TVM_NUM_THREADS", value.c_str(), 1);
    } else if (flag == "--key") {
      options.key = value;
    } else if (flag == "--custom-addr") {
      options.custom_addr = value;
    } else if (flag == "--tracker") {
      const size_t colon = value.rfind(':');
      if (colon == std::string::npos) Fail("--tracker is " + value + ", expected HOST:PORT");
      options.tracker_host = value.substr(0, colon);
      options.tracker_port = value.substr(colon + 1);
    } else {
      Fail("unknown option " + flag);
    }
  }
  if (options.key.empty() && !options.tracker_host.empty()) Fail("--tracker needs --key");
  return options;
}

}  // namespace

int main(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_IGN);
  setenv("TVM_BIND_THREADS", "0", 0);  // pinning would bind a process with one thread to core 0
  Options options;
  try {
    options = Parse(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s\n", argv[0], error.what());
    return 2;
  }
  try {
    Socket listener = Listen(options);
    options.port = PortOf(listener);
    std::printf("listening on %s:%d\n", options.host.c_str(), options.port);
    std::fflush(stdout);
    Registration registration(options, options.port);
    while (true) {
      try {
        registration.Offer();
        std::string said;
        Socket client = NextClient(listener, options, &registration, &said);
        Session(listener, std::move(client), said);
      } catch (const std::exception& error) {  // the tracker went away, or the board is out of memory for now
        std::fprintf(stderr, "%s; going on\n", error.what());
        registration.Disconnect();
        sleep(kPingSeconds);
      }
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s\n", argv[0], error.what());
    return 1;
  }
}
