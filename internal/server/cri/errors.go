package cri

import (
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	crierrors "k8s.io/cri-api/pkg/errors"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/image"
)

// grpcCodes is the one mapping of kinds to the protocol's codes.
var grpcCodes = map[*errs.Kind]codes.Code{
	errs.NotFound:           codes.NotFound,
	errs.AlreadyExists:      codes.AlreadyExists,
	errs.InUse:              codes.FailedPrecondition,
	errs.Invalid:            codes.InvalidArgument,
	errs.FailedPrecondition: codes.FailedPrecondition,
	errs.Unsupported:        codes.Unimplemented,
	errs.Unavailable:        codes.Unavailable,
	errs.Unauthenticated:    codes.Unauthenticated,
	errs.PermissionDenied:   codes.PermissionDenied,
	errs.ResourceExhausted:  codes.ResourceExhausted,
	errs.Corrupt:            codes.DataLoss,
	errs.Timeout:            codes.DeadlineExceeded,
	errs.Canceled:           codes.Canceled,
	errs.Internal:           codes.Internal,
}

func encodeError(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	text := err.Error()
	if len(text) > maxError { // it repeats what it was asked
		text = strings.ToValidUTF8(text[:maxError], "") + " …"
	}
	var refused *image.Refusal
	if errors.As(err, &refused) {
		// Clients know it by the beginning of a message without a code.
		return status.Error(codes.Unknown, fmt.Sprintf("%s: %s", crierrors.ErrSignatureValidationFailed, text))
	}
	return status.Error(grpcCodes[errs.KindOf(err)], text)
}

// maxError bounds the text of an error: the longest path fits.
const maxError = 4<<10 + 512
