package control

import (
	"context"

	"connectrpc.com/connect"

	orlopv1 "github.com/orlop-io/orlop/api/orlop/v1"
	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/server/control/logfile"
)

// Logs implements the service.
func (p pods) Logs(ctx context.Context, req *connect.Request[orlopv1.LogsRequest], out *connect.ServerStream[orlopv1.LogsResponse]) error {
	m := req.Msg
	if m.Tail != nil && m.GetTail() < 0 {
		return errs.New(errs.Invalid, "the number of lines %d is negative", m.GetTail())
	}
	l, err := p.o.Pods.Logs(ctx, key(m.GetNamespace(), m.GetPod()), m.GetContainer(), m.GetPrevious())
	if err != nil {
		return err
	}
	o := logfile.Options{Path: l.Path, Tail: -1, Timestamps: m.GetTimestamps(), Follow: m.GetFollow(), More: l.More, Next: l.Next}
	if m.Tail != nil {
		o.Tail = m.GetTail()
	}
	if m.Since != nil {
		o.Since = m.Since.AsTime()
	}
	err = logfile.Read(ctx, o, func(stream string, data []byte) error {
		return out.Send(&orlopv1.LogsResponse{Stream: stream, Data: data})
	})
	if ctx.Err() != nil {
		return nil // the client has had enough
	}
	return err
}
