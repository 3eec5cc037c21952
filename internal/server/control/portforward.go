package control

import (
	"context"
	"errors"
	"io"

	"connectrpc.com/connect"

	orlopv1 "github.com/orlop-io/orlop/api/orlop/v1"
	"github.com/orlop-io/orlop/internal/base/errs"
)

// PortForward implements the service.
func (p pods) PortForward(ctx context.Context, stream *connect.BidiStream[orlopv1.PortForwardRequest, orlopv1.PortForwardResponse]) error {
	first, err := stream.Receive()
	if err != nil {
		return err
	}
	start := first.GetStart()
	if start == nil || start.Port == 0 || start.Port > 65535 {
		return errs.New(errs.Invalid, "the first message of a port forward must be its start, with a port of 1 to 65535")
	}
	conn, err := p.o.Pods.Dial(ctx, key(start.Namespace, start.Pod), uint16(start.Port))
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := stream.Send(&orlopv1.PortForwardResponse{Message: &orlopv1.PortForwardResponse_Connected{Connected: true}}); err != nil {
		return err
	}
	go func() {
		for {
			m, err := stream.Receive()
			if err != nil {
				if half, ok := conn.(interface{ CloseWrite() error }); ok && errors.Is(err, io.EOF) {
					half.CloseWrite()
				} else {
					conn.Close()
				}
				return
			}
			if _, err := conn.Write(m.GetData()); err != nil {
				conn.Close()
				return
			}
		}
	}()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	buf := make([]byte, piece)
	for {
		n, err := conn.Read(buf)
		if n > 0 {
			if err := stream.Send(&orlopv1.PortForwardResponse{Message: &orlopv1.PortForwardResponse_Data{Data: buf[:n]}}); err != nil {
				return err
			}
		}
		if err != nil {
			return nil // the pod's side has ended
		}
	}
}
