// Errors that reach a caller. One base class, one subclass per class of failure; each maps to one
// exit code of the program and one Python exception (docs/errors.md).
// Expected outcomes (a variant that does not fit, a digest check) are return values, not errors.
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

namespace graft {

// The text reads `[where] what: expected …, got …`, and a line `hint: …` when something can be
// done.
//
// code   stable and greppable: `<where>.<kebab-case reason>`, e.g. `io.safetensors.header-length`
// where  the public name that the user typed or the room that failed, e.g. `io.safetensors`
class Error : public std::runtime_error {
 public:
  Error(std::string_view where, std::string_view reason, std::string_view message,
        std::string_view hint = {});

  const std::string& code() const { return code_; }
  const std::string& where() const { return where_; }
  const std::string& hint() const { return hint_; }
  // Exit code of the program: 1 request failed, 2 wrong usage, 3 network, 4 integrity, 5 device.
  virtual int exit_code() const { return 1; }

 private:
  std::string code_;
  std::string where_;
  std::string hint_;
};

// A value that the caller passed is wrong.
class InvalidArgument : public Error {
 public:
  using Error::Error;
  int exit_code() const override { return 2; }
};

// A file, package, layer or tensor does not exist.
class NotFound : public Error {
 public:
  using Error::Error;
};

// A file's content breaks its format; the message names file, field and offset.
class FormatError : public Error {
 public:
  using Error::Error;
};

// The network did not answer, or offline mode forbids asking.
class NetworkError : public Error {
 public:
  using Error::Error;
  int exit_code() const override { return 3; }
};

// Size, digest, signature or trust does not hold.
class IntegrityError : public Error {
 public:
  using Error::Error;
  int exit_code() const override { return 4; }
};

// Nothing on offer fits this machine, model or request.
class IncompatibleError : public Error {
 public:
  using Error::Error;
};

// A library could not be loaded or does not hold what it promises.
class LoadError : public Error {
 public:
  using Error::Error;
  int exit_code() const override { return 5; }
};

// A device is missing, out of memory, or reported a fault.
class DeviceError : public Error {
 public:
  using Error::Error;
  int exit_code() const override { return 5; }
};

// The caller asked to stop.
class Cancelled : public Error {
 public:
  using Error::Error;
  int exit_code() const override { return 130; }
};

// A bug of ours.
class InternalError : public Error {
 public:
  using Error::Error;
};

}  // namespace graft
