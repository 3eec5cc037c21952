package trace

import (
	"context"
	"encoding/hex"
	"log/slog"
)

// Handler returns a handler that adds the id of the trace to what is logged about a
// request that is traced, as trace_id.
func Handler(h slog.Handler) slog.Handler { return handler{h} }

type handler struct{ slog.Handler }

func (h handler) Handle(ctx context.Context, r slog.Record) error {
	if s := current(ctx); s != nil {
		if id, ok := s.Parent().Decode(); ok {
			r.AddAttrs(slog.String("trace_id", hex.EncodeToString(id.Trace[:])))
		}
	}
	return h.Handler.Handle(ctx, r)
}

func (h handler) WithAttrs(a []slog.Attr) slog.Handler { return handler{h.Handler.WithAttrs(a)} }
func (h handler) WithGroup(name string) slog.Handler   { return handler{h.Handler.WithGroup(name)} }
