package cri

import (
	"context"
	"fmt"
	"io"
	"sync"
	"syscall"
	"time"

	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/utils/exec"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/idlecopy"
	"github.com/orlop-io/orlop/internal/pod"
)

// maxOutput is what ExecSync keeps of a command's output, which fits one message.
const maxOutput = maxMessage - 4096

// ExecSync implements the service.
func (s *Server) ExecSync(ctx context.Context, r *v1.ExecSyncRequest) (*v1.ExecSyncResponse, error) {
	if r.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, time.Duration(r.Timeout)*time.Second,
			errs.New(errs.Timeout, "command %.200q timed out after %d s", r.Cmd, r.Timeout))
		defer cancel()
	}
	out, err := s.o.Pods.Run(ctx, pod.ContainerID(r.ContainerId), r.Cmd, maxOutput)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, err
	}
	defer out.Free()
	if out.DroppedBytes > 0 {
		// The protocol has no place to say it but the output itself.
		out.Stderr = fmt.Appendf(out.Stderr, "\n[%d more bytes of output were dropped: an answer has room for %d, and answers that wait share theirs]\n", out.DroppedBytes, int64(maxOutput))
	}
	return &v1.ExecSyncResponse{Stdout: out.Stdout, Stderr: out.Stderr, ExitCode: int32(out.Code)}, nil
}

// Exec implements the service.
func (s *Server) Exec(ctx context.Context, r *v1.ExecRequest) (*v1.ExecResponse, error) {
	if err := s.runs(r.ContainerId); err != nil {
		return nil, err
	}
	return s.streaming.GetExec(r)
}

// Attach implements the service.
func (s *Server) Attach(ctx context.Context, r *v1.AttachRequest) (*v1.AttachResponse, error) {
	if err := s.runs(r.ContainerId); err != nil {
		return nil, err
	}
	return s.streaming.GetAttach(r)
}

func (s *Server) runs(id string) error {
	c, err := s.o.Pods.Container(pod.ContainerID(id))
	if err == nil && c.State != pod.DrivenRunning {
		err = errs.New(errs.FailedPrecondition, "container %s is %s; it must run", id, c.State)
	}
	return err
}

// PortForward implements the service.
func (s *Server) PortForward(ctx context.Context, r *v1.PortForwardRequest) (*v1.PortForwardResponse, error) {
	b, err := s.o.Pods.Sandbox(pod.ID(r.PodSandboxId))
	if err != nil {
		return nil, err
	}
	if b.State != pod.SandboxReady {
		return nil, errs.New(errs.FailedPrecondition, "pod sandbox %s is %s; it must be ready", b.ID, b.State)
	}
	return s.offerForward(r)
}

// sessions joins streams of clients with processes and ports of pods.
type sessions struct{ s *Server }

// Exec implements streaming.Runtime.
func (r sessions) Exec(ctx context.Context, id string, cmd []string, in io.Reader, out, err io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	s, xerr := r.s.o.Pods.Exec(ctx, pod.ContainerID(id), pod.ExecOptions{Command: cmd, TTY: tty, Stdin: in != nil})
	if xerr != nil {
		return unlessGone(ctx, xerr)
	}
	return r.join(ctx, s, in, out, err, resize, true)
}

// Attach implements streaming.Runtime.
func (r sessions) Attach(ctx context.Context, id string, in io.Reader, out, err io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	s, xerr := r.s.o.Pods.Attach(ctx, pod.ContainerID(id), pod.AttachOptions{Stdin: in != nil})
	if xerr != nil {
		return unlessGone(ctx, xerr)
	}
	return r.join(ctx, s, in, out, err, resize, false)
}

// join copies until the process ends or the client goes.
func (r sessions) join(ctx context.Context, s *pod.Session, in io.Reader, out, err io.WriteCloser, resize <-chan remotecommand.TerminalSize, own bool) error {
	defer s.Close()
	done := make(chan struct{})
	defer close(done)
	go func() {
		for {
			select {
			case size, ok := <-resize:
				if !ok {
					return
				}
				if size.Width > 0 && size.Height > 0 {
					s.Resize(size.Width, size.Height)
				}
			case <-done:
				return
			}
		}
	}()
	detached := make(chan struct{})
	if in != nil && s.Stdin != nil {
		go func() {
			io.Copy(s.Stdin, in)
			s.Stdin.Close()
			if !own { // the client of an attach has gone, or is done; the container is not
				close(detached)
			}
		}()
	}
	var wg sync.WaitGroup
	if out != nil {
		wg.Go(func() { idlecopy.Copy(out, s.Stdout) })
	} else {
		wg.Go(func() { idlecopy.Copy(io.Discard, s.Stdout) })
	}
	if s.Stderr != nil {
		to := io.Writer(io.Discard)
		if err != nil {
			to = err
		}
		wg.Go(func() { idlecopy.Copy(to, s.Stderr) })
	}
	read := make(chan struct{})
	go func() { wg.Wait(); close(read) }()
	if !own && out == nil && err == nil {
		select {
		case <-detached:
			return nil
		case <-read:
		case <-ctx.Done():
			return nil
		}
	}
	code, _, werr := s.Wait(ctx)
	if werr != nil {
		if own && !s.TTY {
			// A command ends with its client: a terminal hangs up, and this is for the others.
			s.Signal(context.WithoutCancel(ctx), int(syscall.SIGTERM))
		}
		return unlessGone(ctx, werr)
	}
	s.Drain(func() { <-read })
	if own && code != 0 {
		return exec.CodeExitError{Err: errs.New(errs.Internal, "exit status %d", code), Code: code}
	}
	return nil
}

// PortForward implements streaming.Runtime.
func (r sessions) PortForward(_ context.Context, name string, port int32, stream io.ReadWriteCloser) error {
	if port < 1 || port > 65535 {
		return errs.New(errs.Invalid, "port %d is not one of 1 to 65535", port)
	}
	id, ctx, err := r.s.forward(name)
	if err != nil {
		return err
	}
	conn, err := r.s.o.Pods.Dial(ctx, id, uint16(port))
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	go func() {
		io.Copy(conn, stream)
		if half, ok := conn.(interface{ CloseWrite() error }); ok {
			half.CloseWrite()
		}
	}()
	_, err = idlecopy.Copy(stream, conn)
	return unlessGone(ctx, err)
}

// unlessGone is the error of a session, if its client is there to be told.
func unlessGone(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}
