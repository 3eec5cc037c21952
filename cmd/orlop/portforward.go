package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"

	orlopv1 "github.com/orlop-io/orlop/api/orlop/v1"
	"github.com/spf13/cobra"
)

func (a *app) portForwardCommand() *cobra.Command {
	var address string
	cmd := &cobra.Command{
		Use:   "port-forward POD [LOCAL:]REMOTE...",
		Short: "Forward local ports into a pod",
		Long: `Listens on ports of 127.0.0.1 and carries each connection to a TCP port in the pod, until it is interrupted. It
works for ports without a host port, and for what listens on the pod's loopback alone. Without LOCAL the local
port is the same as in the pod; with :REMOTE a free one is taken. What listens is printed on standard output.`,
		Example: `  orlop port-forward notes 9000:8080
  orlop port-forward notes :8080`,
		Args:              cobra.MinimumNArgs(2),
		ValidArgsFunction: a.completePods,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			var ports [][2]uint16
			for _, s := range args[1:] {
				local, remote, err := parsePorts(s)
				if err != nil {
					return usage(cmd, "%v", err)
				}
				ports = append(ports, [2]uint16{local, remote})
			}
			// A name that is wrong shows now, not at the first connection.
			if _, err := call(ctx, a.client().pods.Get, &orlopv1.GetPodRequest{Namespace: a.namespace, Name: args[0]}); err != nil {
				return err
			}
			var wg sync.WaitGroup
			for _, p := range ports {
				l, err := net.Listen("tcp", net.JoinHostPort(address, strconv.Itoa(int(p[0]))))
				if err != nil {
					return err
				}
				defer l.Close()
				context.AfterFunc(ctx, func() { l.Close() })
				fmt.Fprintf(cmd.OutOrStdout(), "%s -> %s:%d\n", l.Addr(), args[0], p[1])
				wg.Go(func() {
					for {
						conn, err := l.Accept()
						if err != nil {
							return
						}
						wg.Go(func() {
							start := &orlopv1.PortForwardRequest_Start{Namespace: a.namespace, Pod: args[0], Port: uint32(p[1])}
							if err := a.forward(ctx, conn.(*net.TCPConn), start); err != nil && ctx.Err() == nil {
								text, _ := explain(err, a.socket)
								fmt.Fprintf(cmd.ErrOrStderr(), "%s: %s\n", l.Addr(), text)
							}
						})
					}
				})
			}
			wg.Wait()
			return nil
		},
	}
	cmd.Flags().StringVar(&address, "address", "127.0.0.1", "address to listen on")
	return cmd
}

// parsePorts parses [LOCAL:]REMOTE; a local port of 0 is any free one.
func parsePorts(s string) (local, remote uint16, err error) {
	l, r, both := strings.Cut(s, ":")
	if !both {
		r = l
	}
	n, err := strconv.ParseUint(r, 10, 16)
	if err != nil || n == 0 {
		return 0, 0, fmt.Errorf("%q is no port; write REMOTE, LOCAL:REMOTE or :REMOTE", s)
	}
	remote, local = uint16(n), uint16(n)
	if both {
		local = 0
		if l != "" {
			n, err := strconv.ParseUint(l, 10, 16)
			if err != nil {
				return 0, 0, fmt.Errorf("%q is no port; write REMOTE, LOCAL:REMOTE or :REMOTE", s)
			}
			local = uint16(n)
		}
	}
	return local, remote, nil
}

// forward carries one connection. Each side's end of data is passed on alone.
func (a *app) forward(ctx context.Context, conn *net.TCPConn, start *orlopv1.PortForwardRequest_Start) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	stream := a.client().pods.PortForward(ctx)
	defer stream.CloseResponse()
	if err := stream.Send(&orlopv1.PortForwardRequest{Message: &orlopv1.PortForwardRequest_Start_{Start: start}}); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	sending := false
	for {
		m, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		switch m := m.Message.(type) {
		case *orlopv1.PortForwardResponse_Connected:
			if sending {
				continue
			}
			sending = true
			go func() {
				copyInput(conn, nil, func(b []byte) error {
					return stream.Send(&orlopv1.PortForwardRequest{Message: &orlopv1.PortForwardRequest_Data{Data: b}})
				})
				stream.CloseRequest()
			}()
		case *orlopv1.PortForwardResponse_Data:
			if _, err := conn.Write(m.Data); err != nil {
				return nil // the client has gone
			}
		}
	}
}
