package control

import (
	"context"
	"net/http"
	"strings"

	"connectrpc.com/connect"

	"github.com/orlop-io/orlop/api/orlop/v1/orlopv1connect"
	"github.com/orlop-io/orlop/internal/base/trace"
	"github.com/orlop-io/orlop/internal/server/rpc"
)

// acts are the procedures that begin a trace where the client has begun none: those that
// change something.
var acts = map[string]bool{
	orlopv1connect.ManifestsApplyProcedure: true, orlopv1connect.ManifestsDeleteProcedure: true,
	orlopv1connect.PodsCopyToProcedure: true,
	orlopv1connect.ImagesPullProcedure: true, orlopv1connect.ImagesRemoveProcedure: true, orlopv1connect.ImagesPruneProcedure: true,
	orlopv1connect.ImagesTagProcedure: true, orlopv1connect.ImagesPackProcedure: true, orlopv1connect.ImagesImportProcedure: true,
	orlopv1connect.SystemPruneProcedure: true, orlopv1connect.SystemUpgradeKeeperProcedure: true,
}

// watched measures and traces a request. Streams that last as long as the client wants are
// not watched: how long that is says nothing.
func (i interceptor) watched(ctx context.Context, procedure string, header http.Header, do func(context.Context) error) error {
	if endless[procedure] {
		return do(ctx)
	}
	ctx, call := i.o.Watch.Begin(ctx, rpc.Request{
		Server: "control", System: "connectrpc", Method: strings.TrimPrefix(procedure, "/"), Looks: !acts[procedure],
		Parent: trace.Parent{Traceparent: header.Get(trace.TraceparentField), State: strings.Join(header.Values(trace.TracestateField), ",")},
	})
	err := do(ctx)
	code := "ok"
	if err != nil {
		code = connect.CodeOf(err).String()
	}
	call.End(code, err)
	return err
}
