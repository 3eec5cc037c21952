package control

import (
	"errors"

	"connectrpc.com/connect"

	orlopv1 "github.com/orlop-io/orlop/api/orlop/v1"
	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/server/control/manifest"
)

// codes is the one mapping of kinds to the protocol's codes. It loses detail (both
// InUse and FailedPrecondition become failed_precondition), so the kind itself
// travels in the error's detail.
var codes = map[*errs.Kind]connect.Code{
	errs.NotFound:           connect.CodeNotFound,
	errs.AlreadyExists:      connect.CodeAlreadyExists,
	errs.InUse:              connect.CodeFailedPrecondition,
	errs.Invalid:            connect.CodeInvalidArgument,
	errs.FailedPrecondition: connect.CodeFailedPrecondition,
	errs.Unsupported:        connect.CodeUnimplemented,
	errs.Unavailable:        connect.CodeUnavailable,
	errs.Unauthenticated:    connect.CodeUnauthenticated,
	errs.PermissionDenied:   connect.CodePermissionDenied,
	errs.ResourceExhausted:  connect.CodeResourceExhausted,
	errs.Corrupt:            connect.CodeDataLoss,
	errs.Timeout:            connect.CodeDeadlineExceeded,
	errs.Canceled:           connect.CodeCanceled,
	errs.Internal:           connect.CodeInternal,
}

// encodeError makes a domain's error one of the protocol. One of the protocol
// already stays as it is.
func encodeError(err error) error {
	if err == nil {
		return nil
	}
	if ce := new(connect.Error); errors.As(err, &ce) {
		return err
	}
	kind := errs.KindOf(err)
	info := &orlopv1.ErrorInfo{Kind: kind.Error()}
	text := err
	if problems := (manifest.Problems)(nil); errors.As(err, &problems) {
		for _, p := range problems {
			info.Problems = append(info.Problems, &orlopv1.Problem{File: p.File, Line: int32(p.Line), Column: int32(p.Column), Path: p.Path, Message: p.Message})
		}
		text = errors.New(problems.Summary()) // the detail has the rest
	}
	out := connect.NewError(codes[kind], text)
	if d, err := connect.NewErrorDetail(info); err == nil {
		out.AddDetail(d)
	}
	return out
}
