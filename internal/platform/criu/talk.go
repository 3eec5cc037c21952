package criu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/sysmon"
)

// Request is one that CRIU gets.
type Request struct {
	Type    Type
	Options *Options
	// Stdio are CRIU's standard streams, which what is restored can inherit; nil is
	// /dev/null. Extra are its descriptors from FirstExtra on.
	Stdio [3]*os.File
	Extra []*os.File
	// Notify is told of what CRIU has come to. It waits meanwhile, and gives up on an error.
	Notify func(*Notification) error
	// Spawn, where it is set, has CRIU started, by calling start on a thread that is in the
	// namespaces that CRIU is to be in. CRIU then waits for Options as they are when Spawn
	// has returned.
	Spawn func(start Start) error

	features Features
	stderr   io.Writer
}

// Start clones CRIU from the calling thread: into a control group of cgroup2, unless that is
// negative, and into new namespaces that it makes itself once it is there (CLONE_NEWCGROUP).
type Start func(cgroupFD int, unshare uintptr) (pid int, err error)

// FirstExtra is what Request.Extra begin at: the socket comes before them.
const FirstExtra = socketFD + 1

const socketFD = 3

// Notification is a stage that CRIU has come to ("action scripts" of criu(8)).
type Notification struct {
	// Script is its name: "post-dump", "setup-namespaces", "post-restore", …
	Script string
	// PID is that of the tree's first process, as we see it, 0 where there is none.
	PID int
	// File came with it: with "orphan-pts-master" a terminal's master. It is closed after
	// Notify, unless that takes it by setting it to nil.
	File *os.File
}

// Features are what not every kernel can.
type Features struct {
	MemoryTracking bool // tells which pages were written to
	LazyPages      bool // userfaultfd
}

// Features asks for those that are set in want.
func (c *CRIU) Features(ctx context.Context, want Features) (Features, error) {
	r, err := c.talk(ctx, &Request{Type: featureCheck, features: want})
	return r.features, err
}

// Do has a request carried out. When ctx ends while CRIU saves processes, it is told at its next
// notification, and lets them go on; it is not killed, as they would be left with its code
// in them. While it restores it is killed, and what it has made is left to the caller to end.
//
// An error that is CRIU's is errs.FailedPrecondition; Explain tells more.
func (c *CRIU) Do(ctx context.Context, r *Request) (err error) {
	_, err = c.talk(ctx, r)
	return err
}

// talk starts CRIU, has it carry out the request, and waits for its end.
func (c *CRIU) talk(ctx context.Context, r *Request) (_ response, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return response{}, fmt.Errorf("socketpair: %w", err)
	}
	ours, theirs := fds[0], os.NewFile(uintptr(fds[1]), "criu")
	open := true
	hangUp := func() {
		if open {
			unix.Close(ours)
			open = false
		}
	}
	defer hangUp()
	wait, kill, err := c.start(r, theirs)
	theirs.Close()
	if err != nil {
		return response{}, err
	}
	ended := func() error { return nil }
	if r.Type == Restore {
		killed := make(chan struct{})
		stop := context.AfterFunc(ctx, func() {
			defer close(killed)
			unix.Shutdown(ours, unix.SHUT_RDWR) // what it has made may hold the other end
			kill()
		})
		ended = func() error {
			if stop() {
				return nil
			}
			<-killed
			return context.Cause(ctx)
		}
	}
	resp, err := c.converse(ctx, r, ours)
	if e := ended(); e != nil {
		err = e
	}
	// At the end of the conversation CRIU ends: it has no more to do, or is not to go on.
	hangUp()
	status, werr := wait()
	switch {
	case err != nil:
		return resp, err
	case werr != nil:
		return resp, fmt.Errorf("wait for CRIU: %w", werr)
	case !status.Success() && r.Type != PreDump: // after which CRIU waits for the next, in vain
		return resp, errs.New(errs.FailedPrecondition, "CRIU: %s", status)
	}
	return resp, nil
}

// start starts CRIU, and returns what waits for its end, and what ends it.
func (c *CRIU) start(r *Request, socket *os.File) (wait func() (*os.ProcessState, error), kill func() error, err error) {
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		return nil, nil, err
	}
	defer null.Close()
	files := make([]*os.File, 0, FirstExtra+len(r.Extra))
	for _, f := range r.Stdio {
		if f == nil {
			f = null
		}
		files = append(files, f)
	}
	said := make(chan struct{})
	var in *os.File
	if r.stderr != nil {
		out, w, err := os.Pipe()
		if err != nil {
			return nil, nil, err
		}
		in, files[2] = w, w
		go func() {
			defer close(said)
			defer out.Close()
			io.Copy(r.stderr, out)
		}()
	} else {
		close(said)
	}
	files = append(append(files, socket), r.Extra...)
	attr := &os.ProcAttr{Dir: "/", Files: files, Sys: &syscall.SysProcAttr{}}
	// Nobody's Ctrl-C ends it while processes stand still for it. What is restored may have
	// to be in our process group (Options.ShellJob).
	attr.Sys.Setpgid = r.Type != Restore
	var p *os.Process
	start := func(cgroupFD int, unshare uintptr) (_ int, err error) {
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD, attr.Sys.Unshareflags = cgroupFD >= 0, cgroupFD, unshare
		sysmon.Spawn(func() { p, err = os.StartProcess(c.path, []string{"criu", "swrk", fmt.Sprint(socketFD)}, attr) })
		if err != nil {
			return 0, err
		}
		return p.Pid, nil
	}
	if r.Spawn != nil {
		err = r.Spawn(start)
	} else {
		_, err = start(-1, 0)
	}
	if in != nil {
		in.Close()
	}
	wait = func() (*os.ProcessState, error) {
		st, err := p.Wait()
		<-said
		return st, err
	}
	if err != nil {
		if p != nil {
			p.Kill() // it waits for a request
			wait()
		}
		return nil, nil, fmt.Errorf("start CRIU: %w", err)
	}
	return wait, p.Kill, nil
}

// converse sends the request and answers CRIU until it has answered.
func (c *CRIU) converse(ctx context.Context, r *Request, socket int) (response, error) {
	// One that has ended may have said why before.
	if err := unix.Send(socket, r.encode(), unix.MSG_NOSIGNAL); err != nil && err != unix.EPIPE {
		return response{}, fmt.Errorf("ask CRIU: %w", err)
	}
	for {
		resp, file, err := receive(socket)
		if err != nil {
			return resp, err
		}
		if resp.kind != notify {
			if file != nil {
				file.Close()
			}
			return resp, resp.failure(r.Type)
		}
		if err = context.Cause(ctx); err == nil && r.Notify != nil {
			n := Notification{Script: resp.script, PID: resp.pid, File: file}
			err = r.Notify(&n)
			file = n.File
		}
		if file != nil {
			file.Close()
		}
		if e := unix.Send(socket, acknowledge(err == nil), unix.MSG_NOSIGNAL); e != nil && err == nil {
			err = fmt.Errorf("answer CRIU: %w", e)
		}
		if err != nil {
			// It takes back what it did, and says so.
			for {
				resp, file, e := receive(socket)
				if file != nil {
					file.Close()
				}
				if e != nil || resp.kind != notify {
					return resp, err
				}
				if unix.Send(socket, acknowledge(true), unix.MSG_NOSIGNAL) != nil {
					return resp, err
				}
			}
		}
	}
}

// failure is the error of a response that tells of one.
func (r *response) failure(asked Type) error {
	if r.success && r.kind == asked {
		return nil
	}
	what := asked.String() + " failed"
	if r.kind != asked {
		what = "it answered the " + asked.String() + " with a " + r.kind.String()
	}
	if why := reasons(r.message); len(why) > 0 {
		what += ": " + strings.Join(why, "; ")
	}
	if r.errno != 0 {
		what += ": " + unix.ErrnoName(syscall.Errno(r.errno))
	}
	return errs.New(errs.FailedPrecondition, "CRIU: %s", what)
}

// receive takes CRIU's next message, with the descriptor that came with it.
func receive(socket int) (r response, file *os.File, err error) {
	buf, oob := make([]byte, 64<<10), make([]byte, unix.CmsgSpace(4))
	var n, oobn, flags int
	for {
		n, oobn, flags, _, err = unix.Recvmsg(socket, buf, oob, unix.MSG_CMSG_CLOEXEC)
		if err != unix.EINTR {
			break
		}
	}
	if oobn > 0 {
		if ms, err := unix.ParseSocketControlMessage(oob[:oobn]); err == nil && len(ms) == 1 {
			if fds, err := unix.ParseUnixRights(&ms[0]); err == nil && len(fds) == 1 {
				file = os.NewFile(uintptr(fds[0]), "criu")
			}
		}
	}
	switch {
	case err == nil && n == 0 || errors.Is(err, unix.ECONNRESET):
		err = errs.New(errs.FailedPrecondition, "CRIU ended without an answer")
	case err != nil:
		err = fmt.Errorf("listen to CRIU: %w", err)
	case flags&unix.MSG_TRUNC != 0:
		err = errs.New(errs.Internal, "CRIU's message has more than %d bytes", len(buf))
	default:
		if r, err = parse(buf[:n]); err != nil {
			err = fmt.Errorf("CRIU's message: %w", err)
		}
	}
	if err != nil && file != nil {
		file.Close()
		file = nil
	}
	return r, file, err
}
