package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"

	orlopv1 "github.com/orlop-io/orlop/api/orlop/v1"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

const chunk = 32 << 10

func (a *app) execCommand() *cobra.Command {
	var container string
	var stdin, tty bool
	cmd := &cobra.Command{
		Use:   "exec POD [-c CONTAINER] [-i] [-t] -- COMMAND [ARG...]",
		Short: "Run a command in a running container",
		Long: `Runs a command in a container and exits with its code (128 and the signal's number, where a signal ended it).
With -t the command gets a terminal, and its output comes on standard output alone.`,
		Example: `  orlop exec notes -c web -- /bin/notes check
  orlop exec -it notes -c web -- sh
  tar c dir | orlop exec -i notes -c web -- tar x -C /data`,
		Args: func(cmd *cobra.Command, args []string) error {
			if dash := cmd.ArgsLenAtDash(); len(args) < 2 || dash >= 0 && dash != 1 {
				return usage(cmd, "say where and what: orlop exec POD -- COMMAND")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			start := &orlopv1.ExecRequest_Start{Namespace: a.namespace, Pod: args[0], Container: container, Command: args[1:], Tty: tty, Stdin: stdin}
			return a.exec(cmd, start)
		},
		ValidArgsFunction: a.completePods,
	}
	f := cmd.Flags()
	f.StringVarP(&container, "container", "c", "", "which container; needed if there are several")
	f.BoolVarP(&stdin, "stdin", "i", false, "pass on standard input")
	f.BoolVarP(&tty, "tty", "t", false, "give the command a terminal")
	return cmd
}

func (a *app) exec(cmd *cobra.Command, start *orlopv1.ExecRequest_Start) error {
	// Signals are the command's, so they do not cut the connection.
	ctx, cancel := context.WithCancel(context.WithoutCancel(cmd.Context()))
	defer cancel()
	t := &terminal{in: os.Stdin}
	defer t.restore()
	if start.Tty {
		start.Size = t.size()
		if start.Size == nil {
			fmt.Fprintln(cmd.ErrOrStderr(), "orlop: standard input is no terminal; the command gets one all the same")
		}
	}

	stream := a.client().pods.Exec(ctx)
	defer stream.CloseResponse()
	var mu sync.Mutex
	send := func(m *orlopv1.ExecRequest) error {
		mu.Lock()
		defer mu.Unlock()
		return stream.Send(m)
	}
	if err := send(&orlopv1.ExecRequest{Message: &orlopv1.ExecRequest_Start_{Start: start}}); err != nil && !errors.Is(err, io.EOF) {
		return err
	}

	signals := make(chan os.Signal, 8)
	notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGWINCH)
	defer signal.Stop(signals)
	go t.guard(func() {
		count := 0
		for {
			select {
			case <-ctx.Done():
				return
			case s := <-signals:
				if s == syscall.SIGWINCH {
					if size := t.size(); start.Tty && size != nil {
						go send(&orlopv1.ExecRequest{Message: &orlopv1.ExecRequest_Resize{Resize: size}})
					}
					continue
				}
				// The first is passed on; whoever insists leaves, and so does who has hung up.
				if count++; count > 1 || s == syscall.SIGHUP {
					cancel()
					return
				}
				// Not here: it may have to wait for input that the command does not read.
				go send(&orlopv1.ExecRequest{Message: &orlopv1.ExecRequest_Signal{Signal: int32(s.(syscall.Signal))}})
			}
		}
	})

	for {
		m, err := stream.Receive()
		if err != nil {
			t.restore()
			if ctx.Err() != nil {
				return &exitError{exitInterrupted}
			}
			if errors.Is(err, io.EOF) {
				return errors.New("the daemon ended the connection before the command ended")
			}
			return err
		}
		switch m := m.Message.(type) {
		case *orlopv1.ExecResponse_Started:
			// Only now: until here there is nobody to read what is typed.
			if start.Tty && start.Stdin {
				if err := t.raw(); err != nil {
					return err
				}
			}
			if start.Stdin {
				go t.guard(func() {
					copyInput(cmd.InOrStdin(), nil, func(b []byte) error {
						return send(&orlopv1.ExecRequest{Message: &orlopv1.ExecRequest_Stdin{Stdin: b}})
					})
					send(&orlopv1.ExecRequest{Message: &orlopv1.ExecRequest_CloseStdin{CloseStdin: true}})
				})
			}
		case *orlopv1.ExecResponse_Stdout:
			if _, err := cmd.OutOrStdout().Write(m.Stdout); err != nil {
				return err
			}
		case *orlopv1.ExecResponse_Stderr:
			cmd.ErrOrStderr().Write(m.Stderr)
		case *orlopv1.ExecResponse_Exit:
			if m.Exit.Code != 0 {
				return &exitError{int(m.Exit.Code)}
			}
			return nil
		}
	}
}

// notify is signal.Notify but for the signals that we were started to ignore, by nohup for one.
func notify(c chan<- os.Signal, signals ...syscall.Signal) {
	for _, s := range signals {
		if !signal.Ignored(s) {
			signal.Notify(c, s)
		}
	}
}

// copyInput sends what is read until the end. It returns true if the detach keys were typed.
func copyInput(r io.Reader, detach *detacher, send func([]byte) error) bool {
	buf := make([]byte, chunk)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			b, left := bytes.Clone(buf[:n]), false
			if detach != nil {
				b, left = detach.filter(b)
			}
			if len(b) > 0 && send(b) != nil {
				return false
			}
			if left {
				return true
			}
		}
		if err != nil {
			return false
		}
	}
}

// detacher looks for ctrl-p ctrl-q in what is typed.
type detacher struct{ held bool }

func (d *detacher) filter(b []byte) (pass []byte, left bool) {
	const ctrlP, ctrlQ = 0x10, 0x11
	for _, c := range b {
		if d.held {
			d.held = false
			if c == ctrlQ {
				return pass, true
			}
			pass = append(pass, ctrlP)
		}
		if c == ctrlP {
			d.held = true
			continue
		}
		pass = append(pass, c)
	}
	return pass, false
}

// terminal is ours, which a process in a container borrows.
type terminal struct {
	in    *os.File
	mu    sync.Mutex
	saved *term.State
}

// raw hands everything typed on as it is.
func (t *terminal) raw() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.saved != nil || !term.IsTerminal(int(t.in.Fd())) {
		return nil
	}
	saved, err := term.MakeRaw(int(t.in.Fd()))
	if err != nil {
		return fmt.Errorf("make the terminal raw: %w", err)
	}
	t.saved = saved
	return nil
}

// restore undoes raw; it may be called at any time, any number of times.
func (t *terminal) restore() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.saved != nil {
		term.Restore(int(t.in.Fd()), t.saved)
		t.saved = nil
	}
}

// guard runs do in a goroutine of its own, whose panic must not leave the terminal raw.
func (t *terminal) guard(do func()) {
	defer func() {
		if p := recover(); p != nil {
			t.restore()
			panic(p)
		}
	}()
	do()
}

// size returns nil where there is no terminal.
func (t *terminal) size() *orlopv1.TerminalSize {
	for _, f := range []*os.File{t.in, os.Stdout} {
		if w, h, err := term.GetSize(int(f.Fd())); err == nil && w > 0 && h > 0 {
			return &orlopv1.TerminalSize{Columns: uint32(w), Rows: uint32(h)}
		}
	}
	return nil
}
