// Package wire is what both ends of the control API have in common: how errors
// travel.
package wire

import (
	"context"
	"errors"
	"net"
	"strings"
	"syscall"

	"connectrpc.com/connect"

	orlopv1 "github.com/orlop-io/orlop/api/orlop/v1"
	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/server/control/manifest"
)

// codes is the one mapping of kinds to the protocol's codes. It loses detail (both
// InUse and FailedPrecondition become failed_precondition), so the kind itself
// travels in the detail.
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

// kinds is the way back, for errors without a detail: those that the protocol's own
// library made.
var kinds = map[connect.Code]*errs.Kind{
	connect.CodeNotFound:           errs.NotFound,
	connect.CodeAlreadyExists:      errs.AlreadyExists,
	connect.CodeInvalidArgument:    errs.Invalid,
	connect.CodeFailedPrecondition: errs.FailedPrecondition,
	connect.CodeUnimplemented:      errs.Unsupported,
	connect.CodeUnavailable:        errs.Unavailable,
	connect.CodeUnauthenticated:    errs.Unauthenticated,
	connect.CodePermissionDenied:   errs.PermissionDenied,
	connect.CodeResourceExhausted:  errs.ResourceExhausted,
	connect.CodeDataLoss:           errs.Corrupt,
	connect.CodeDeadlineExceeded:   errs.Timeout,
	connect.CodeCanceled:           errs.Canceled,
}

// Encode makes a domain's error one of the protocol. One of the protocol already
// stays as it is.
func Encode(err error) error {
	if err == nil {
		return nil
	}
	if ce := new(connect.Error); errors.As(err, &ce) {
		return err
	}
	kind := errs.KindOf(err)
	out := connect.NewError(codes[kind], err)
	info := &orlopv1.ErrorInfo{Kind: kind.Error()}
	if problems := (manifest.Problems)(nil); errors.As(err, &problems) {
		for _, p := range problems {
			info.Problems = append(info.Problems, &orlopv1.Problem{File: p.File, Line: int32(p.Line), Column: int32(p.Column), Path: p.Path, Message: p.Message})
		}
	}
	if d, err := connect.NewErrorDetail(info); err == nil {
		out.AddDetail(d)
	}
	return out
}

// Decode gives an error of the protocol its kind and its text back. An error of the
// connection is errs.Unavailable and wraps its cause.
func Decode(err error) error {
	if err == nil {
		return nil
	}
	ce := new(connect.Error)
	if !errors.As(err, &ce) {
		if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
			return err
		}
		return errs.As(errs.Unavailable, err)
	}
	for _, d := range ce.Details() {
		if v, err := d.Value(); err == nil {
			if info, ok := v.(*orlopv1.ErrorInfo); ok {
				return errs.New(errs.ParseKind(info.GetKind()), "%s", ce.Message())
			}
		}
	}
	if lost(ce) {
		return errs.New(errs.Unavailable, "the connection to the daemon was lost: %w", errors.Unwrap(ce))
	}
	if kind, ok := kinds[ce.Code()]; ok {
		return errs.New(kind, "%s", ce.Message())
	}
	return errs.New(errs.Internal, "%s", ce.Message())
}

// lost tells an error of the connection.
func lost(ce *connect.Error) bool {
	op := new(net.OpError)
	return errors.As(ce, &op) || errors.Is(ce, syscall.ECONNREFUSED) || errors.Is(ce, syscall.ECONNRESET) ||
		strings.Contains(ce.Message(), "http2: ") || strings.Contains(ce.Message(), "unexpected EOF")
}
