package main

import (
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
)

func (a *app) attachCommand() *cobra.Command {
	var container string
	var stdin, tty bool
	cmd := &cobra.Command{
		Use:   "attach POD [-c CONTAINER] [-i] [-t]",
		Short: "Join the streams of a container's own process",
		Long: `Shows what the container writes from now on, and with -i gives it what is typed; the container's manifest must
have asked for stdin. It ends with the container, with its exit code. To leave a container that goes on, press
ctrl-p ctrl-q in a terminal (with -it), or interrupt it (without).`,
		Example: `  orlop attach notes -c web
  orlop attach -it shell`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.attach(cmd, &orlopv1.AttachRequest_Start{Namespace: a.namespace, Pod: args[0], Container: container, Stdin: stdin}, tty)
		},
		ValidArgsFunction: a.completePods,
	}
	f := cmd.Flags()
	f.StringVarP(&container, "container", "c", "", "which container; needed if there are several")
	f.BoolVarP(&stdin, "stdin", "i", false, "pass on standard input")
	f.BoolVarP(&tty, "tty", "t", false, "lend the container this terminal, if it has one of its own")
	return cmd
}

func (a *app) attach(cmd *cobra.Command, start *orlopv1.AttachRequest_Start, tty bool) error {
	ctx, cancel := context.WithCancel(cmd.Context())
	defer cancel()
	t := &terminal{in: os.Stdin}
	defer t.restore()
	if tty {
		start.Size = t.size()
	}
	stream := a.client().pods.Attach(ctx)
	defer stream.CloseResponse()
	var mu sync.Mutex
	send := func(m *orlopv1.AttachRequest) error {
		mu.Lock()
		defer mu.Unlock()
		return stream.Send(m)
	}
	if err := send(&orlopv1.AttachRequest{Message: &orlopv1.AttachRequest_Start_{Start: start}}); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	detached := make(chan struct{})
	for {
		m, err := stream.Receive()
		if err != nil {
			t.restore()
			select {
			case <-detached:
				fmt.Fprintln(cmd.ErrOrStderr(), "\ndetached; the container goes on")
				return nil
			default:
			}
			if ctx.Err() != nil {
				return &exitError{exitInterrupted}
			}
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		switch m := m.Message.(type) {
		case *orlopv1.AttachResponse_Attached_:
			borrowed := tty && m.Attached.Tty
			if tty && !m.Attached.Tty {
				fmt.Fprintf(cmd.ErrOrStderr(), "orlop: container %s has no terminal; its manifest does not say tty: true\n", m.Attached.Container)
			}
			var detach *detacher
			if borrowed && start.Stdin {
				if err := t.raw(); err != nil {
					return err
				}
				detach = &detacher{}
			}
			if borrowed {
				signals := make(chan os.Signal, 1)
				notify(signals, syscall.SIGWINCH, syscall.SIGHUP, syscall.SIGQUIT)
				defer signal.Stop(signals)
				go t.guard(func() {
					for {
						select {
						case <-ctx.Done():
							return
						case s := <-signals:
							if s != syscall.SIGWINCH {
								cancel() // and the terminal is put right
								return
							}
							if size := t.size(); size != nil {
								send(&orlopv1.AttachRequest{Message: &orlopv1.AttachRequest_Resize{Resize: size}})
							}
						}
					}
				})
			}
			if start.Stdin {
				go t.guard(func() {
					if copyInput(cmd.InOrStdin(), detach, func(b []byte) error {
						return send(&orlopv1.AttachRequest{Message: &orlopv1.AttachRequest_Stdin{Stdin: b}})
					}) {
						close(detached)
						cancel()
						return
					}
					send(&orlopv1.AttachRequest{Message: &orlopv1.AttachRequest_CloseStdin{CloseStdin: true}})
				})
			}
		case *orlopv1.AttachResponse_Stdout:
			if _, err := cmd.OutOrStdout().Write(m.Stdout); err != nil {
				return err
			}
		case *orlopv1.AttachResponse_Stderr:
			cmd.ErrOrStderr().Write(m.Stderr)
		case *orlopv1.AttachResponse_Exit:
			if m.Exit.Code != 0 {
				return &exitError{int(m.Exit.Code)}
			}
			return nil
		}
	}
}
