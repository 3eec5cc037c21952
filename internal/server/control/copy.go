package control

import (
	"bufio"
	"context"
	"errors"
	"io"

	"connectrpc.com/connect"

	orlopv1 "github.com/orlop-io/orlop/api/orlop/v1"
	"github.com/orlop-io/orlop/internal/base/errs"
)

// piece is how much of a stream goes into one message.
const piece = 32 << 10

// pieces is an io.Writer that sends what it is given in messages of bounded size.
type pieces func([]byte) error

func (s pieces) Write(b []byte) (n int, err error) {
	for len(b) > 0 {
		k := min(len(b), piece)
		if err := s(b[:k]); err != nil {
			return n, err
		}
		n, b = n+k, b[k:]
	}
	return n, nil
}

// CopyFrom implements the service.
func (p pods) CopyFrom(ctx context.Context, req *connect.Request[orlopv1.CopyFromRequest], out *connect.ServerStream[orlopv1.CopyFromResponse]) error {
	m := req.Msg
	w := bufio.NewWriterSize(pieces(func(b []byte) error {
		return out.Send(&orlopv1.CopyFromResponse{Tar: b})
	}), piece)
	if err := p.o.Pods.CopyFrom(ctx, key(m.Namespace, m.Pod), m.Container, m.Path, w); err != nil {
		return err
	}
	return w.Flush()
}

// CopyTo implements the service.
func (p pods) CopyTo(ctx context.Context, stream *connect.ClientStream[orlopv1.CopyToRequest]) (*connect.Response[orlopv1.CopyToResponse], error) {
	if !stream.Receive() && stream.Err() != nil {
		return nil, stream.Err()
	}
	if stream.Msg().GetStart() == nil {
		return nil, errs.New(errs.Invalid, "the first message of a copy must be its start")
	}
	start := stream.Msg().GetStart()
	r := &receiver{next: func() ([]byte, error) {
		if !stream.Receive() {
			if err := stream.Err(); err != nil {
				return nil, err
			}
			return nil, io.EOF
		}
		return stream.Msg().GetTar(), nil
	}}
	if err := p.o.Pods.CopyTo(ctx, key(start.Namespace, start.Pod), start.Container, start.Path, r); err != nil {
		return nil, err
	}
	// An archive ends before its stream does: there is padding.
	if _, err := io.Copy(io.Discard, r); err != nil {
		return nil, err
	}
	return connect.NewResponse(&orlopv1.CopyToResponse{}), nil
}

// receiver is an io.Reader of pieces.
type receiver struct {
	next func() ([]byte, error)
	rest []byte
}

func (r *receiver) Read(b []byte) (int, error) {
	for len(r.rest) == 0 {
		next, err := r.next()
		if errors.Is(err, io.EOF) { // connect wraps it; readers compare
			return 0, io.EOF
		}
		if err != nil {
			return 0, err
		}
		r.rest = next
	}
	n := copy(b, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}
