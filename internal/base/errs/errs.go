// Package errs is the one error vocabulary of Orlop. Domains and platform
// packages return errors that carry a Kind; each server maps kinds to the codes
// of its protocol in one place; callers check kinds with errors.Is:
//
//	return errs.New(errs.NotFound, "image %q is not here; pull it with: orlop image pull %s", ref, ref)
//	…
//	if errors.Is(err, errs.NotFound) { … }
//
// The text of an error is for the person who has to act on it: it says what was
// being done to what, and, where there is something to do, what to do next.
package errs

import (
	"context"
	"errors"
	"fmt"
)

// Kind classifies an error. A Kind is itself an error, so that errors.Is(err,
// errs.NotFound) works through any number of wraps.
type Kind struct{ name string }

// Error returns the kind's name.
func (k *Kind) Error() string { return k.name }

// The kinds. Their names are part of the control API.
var (
	// NotFound: what was named does not exist.
	NotFound = &Kind{"not found"}
	// AlreadyExists: the name is taken by something else than what was asked for.
	AlreadyExists = &Kind{"already exists"}
	// InUse: the thing is held by something that must be ended first.
	InUse = &Kind{"in use"}
	// Invalid: the request can never succeed as it is.
	Invalid = &Kind{"invalid"}
	// FailedPrecondition: the request is sound, the present state does not allow it.
	FailedPrecondition = &Kind{"failed precondition"}
	// Unsupported: Orlop or this kernel cannot do it.
	Unsupported = &Kind{"unsupported"}
	// Unavailable: something needed cannot be reached now; try again.
	Unavailable = &Kind{"unavailable"}
	// Unauthenticated: credentials are missing or were refused.
	Unauthenticated = &Kind{"unauthenticated"}
	// PermissionDenied: the caller may not do this.
	PermissionDenied = &Kind{"permission denied"}
	// ResourceExhausted: a limit is reached (space, addresses, descriptors).
	ResourceExhausted = &Kind{"resource exhausted"}
	// Corrupt: data is not what its digest or format says.
	Corrupt = &Kind{"corrupt"}
	// Timeout: the deadline passed before the work was done.
	Timeout = &Kind{"timeout"}
	// Canceled: the caller gave up.
	Canceled = &Kind{"canceled"}
	// Internal: a fault of Orlop's own.
	Internal = &Kind{"internal"}
)

var kinds = []*Kind{
	NotFound, AlreadyExists, InUse, Invalid, FailedPrecondition, Unsupported, Unavailable,
	Unauthenticated, PermissionDenied, ResourceExhausted, Corrupt, Timeout, Canceled, Internal,
}

type kinded struct {
	kind *Kind
	err  error
}

func (e *kinded) Error() string        { return e.err.Error() }
func (e *kinded) Unwrap() error        { return e.err }
func (e *kinded) Is(target error) bool { return target == error(e.kind) }

// New returns an error of the kind k. The format is that of fmt.Errorf, %w included.
func New(k *Kind, format string, args ...any) error {
	return &kinded{k, fmt.Errorf(format, args...)}
}

// As gives err the kind k, keeping its text. It returns nil for a nil err.
func As(k *Kind, err error) error {
	if err == nil {
		return nil
	}
	return &kinded{k, err}
}

// KindOf returns the outermost kind that err carries. Errors of package context
// are Canceled and Timeout; everything else without a kind is Internal.
// It returns nil for a nil err.
func KindOf(err error) *Kind {
	if err == nil {
		return nil
	}
	for e := err; e != nil; e = errors.Unwrap(e) {
		if k, ok := e.(*kinded); ok {
			return k.kind
		}
		if k, ok := e.(*Kind); ok {
			return k
		}
	}
	for _, k := range kinds { // errors.Join and other trees
		if errors.Is(err, k) {
			return k
		}
	}
	switch {
	case errors.Is(err, context.Canceled):
		return Canceled
	case errors.Is(err, context.DeadlineExceeded):
		return Timeout
	}
	return Internal
}

// ParseKind returns the kind of that name, and Internal for an unknown one. It
// is for clients that carry kinds over a protocol.
func ParseKind(name string) *Kind {
	for _, k := range kinds {
		if k.name == name {
			return k
		}
	}
	return Internal
}
