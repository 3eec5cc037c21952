package main

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"connectrpc.com/connect"
	orlopv1 "github.com/orlop-io/orlop/api/orlop/v1"
	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/spf13/cobra"
)

// Exit codes. They are part of the interface: docs/cli.md lists them.
const (
	exitFailure     = 1
	exitUsage       = 2
	exitNotFound    = 3
	exitState       = 4
	exitUnreachable = 5
	exitTimeout     = 124
	exitInterrupted = 130
)

// usageError says that the command line is wrong.
type usageError struct {
	text string
	path string // of the command
}

func (e *usageError) Error() string { return e.text }

func usage(cmd *cobra.Command, format string, args ...any) error {
	return &usageError{fmt.Sprintf(format, args...), cmd.CommandPath()}
}

// exitError ends the program with code and says nothing more: what there was to
// say has been said, or was the process's business.
type exitError struct{ code int }

func (e *exitError) Error() string { return fmt.Sprintf("exit code %d", e.code) }

// explain returns what to print for err, and the exit code.
func explain(err error, socket string) (string, int) {
	var exit *exitError
	if errors.As(err, &exit) {
		return "", exit.code
	}
	var wrong *usageError
	if errors.As(err, &wrong) {
		return fmt.Sprintf("orlop: %s\nsee: %s --help", wrong.text, wrong.path), exitUsage
	}
	var dial *dialError
	if errors.As(err, &dial) {
		if errors.Is(dial.err, fs.ErrPermission) {
			return fmt.Sprintf("orlop: cannot reach the daemon at %s: permission denied; use sudo, or join the group that control.group names", dial.socket), exitUnreachable
		}
		return fmt.Sprintf("orlop: cannot reach the daemon at %s: is it running? start it with: make up, or orlop daemon", dial.socket), exitUnreachable
	}
	var remote *connect.Error
	if !errors.As(err, &remote) {
		return "orlop: " + err.Error(), exitCode(errs.KindOf(err).Error())
	}
	info := errorInfo(remote)
	text := strings.TrimPrefix(err.Error(), remote.Error())
	if text == err.Error() { // something is said before it
		text = strings.TrimSuffix(text, remote.Error())
	}
	var b strings.Builder
	fmt.Fprintf(&b, "orlop: %s%s", text, remote.Message())
	if info == nil {
		if remote.Code() == connect.CodeUnavailable || cutOff(remote.Message()) {
			return fmt.Sprintf("orlop: lost the connection to the daemon at %s: %s", socket, remote.Message()), exitUnreachable
		}
		return b.String(), exitCode(codeKind(remote.Code()))
	}
	for _, p := range info.Problems {
		b.WriteString("\n" + problem(p))
	}
	return b.String(), exitCode(info.Kind)
}

// cutOff tells the library's words for a connection that ended in the middle of a stream.
func cutOff(message string) bool {
	for _, s := range []string{"unexpected EOF", "http2: ", "GOAWAY", "connection reset", "broken pipe"} {
		if strings.Contains(message, s) {
			return true
		}
	}
	return false
}

// errorInfo returns the detail that the daemon's errors carry, or nil.
func errorInfo(err *connect.Error) *orlopv1.ErrorInfo {
	for _, d := range err.Details() {
		if m, err := d.Value(); err == nil {
			if info, ok := m.(*orlopv1.ErrorInfo); ok {
				return info
			}
		}
	}
	return nil
}

// problem is file:line: path: message, without what is not known.
func problem(p *orlopv1.Problem) string {
	var b strings.Builder
	if p.File != "" {
		b.WriteString(p.File)
		if p.Line > 0 {
			fmt.Fprintf(&b, ":%d", p.Line)
		}
		b.WriteString(": ")
	}
	if p.Path != "" {
		b.WriteString(p.Path + ": ")
	}
	return b.String() + p.Message
}

// exitCode maps an error's kind.
func exitCode(kind string) int {
	switch errs.ParseKind(kind) {
	case errs.NotFound:
		return exitNotFound
	case errs.AlreadyExists, errs.InUse, errs.FailedPrecondition:
		return exitState
	case errs.Timeout:
		return exitTimeout
	}
	return exitFailure
}

// codeKind is the kind of an error that names none: one that the protocol made.
func codeKind(c connect.Code) string {
	switch c {
	case connect.CodeNotFound:
		return errs.NotFound.Error()
	case connect.CodeAlreadyExists:
		return errs.AlreadyExists.Error()
	case connect.CodeFailedPrecondition:
		return errs.FailedPrecondition.Error()
	case connect.CodeDeadlineExceeded:
		return errs.Timeout.Error()
	}
	return errs.Internal.Error()
}

// isKind tells whether the daemon said that err is of kind k.
func isKind(err error, k *errs.Kind) bool {
	var remote *connect.Error
	if !errors.As(err, &remote) {
		return false
	}
	if info := errorInfo(remote); info != nil {
		return errs.ParseKind(info.Kind) == k
	}
	return codeKind(remote.Code()) == k.Error()
}
