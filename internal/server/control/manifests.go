package control

import (
	"cmp"
	"context"
	"time"

	"connectrpc.com/connect"

	orlopv1 "github.com/orlop-io/orlop/api/orlop/v1"
	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/pod"
	"github.com/orlop-io/orlop/internal/server/control/manifest"
)

type manifests struct{ *server }

func decode(files []*orlopv1.File) []manifest.File {
	out := make([]manifest.File, len(files))
	for i, f := range files {
		out[i] = manifest.File{Name: f.GetName(), Content: f.GetContent()}
	}
	return out
}

// Apply makes every object of the files be as described. What others need comes
// first: config maps, secrets and claims before pods.
func (m manifests) Apply(ctx context.Context, req *connect.Request[orlopv1.ApplyRequest]) (*connect.Response[orlopv1.ApplyResponse], error) {
	objects, err := manifest.Decode(decode(req.Msg.Files), req.Msg.Namespace)
	if err != nil {
		return nil, err
	}
	resp := &orlopv1.ApplyResponse{Results: make([]*orlopv1.ObjectResult, len(objects))}
	for _, podsNow := range []bool{false, true} {
		for i, o := range objects {
			if (o.Pod != nil) != podsNow {
				continue
			}
			r := result(o.Ref, o.File, o.Line)
			resp.Results[i] = r
			if req.Msg.DryRun {
				r.Change = "valid"
				continue
			}
			change, err := m.apply(ctx, o)
			r.Change = string(change)
			fail(r, err)
		}
	}
	return connect.NewResponse(resp), nil
}

func result(ref manifest.Ref, file string, line int) *orlopv1.ObjectResult {
	return &orlopv1.ObjectResult{Ref: &orlopv1.Ref{Kind: ref.Kind, Namespace: ref.Namespace, Name: ref.Name}, File: file, Line: int32(line)}
}

func fail(r *orlopv1.ObjectResult, err error) {
	if err != nil {
		r.Change, r.Message, r.ErrorKind = "failed", err.Error(), errs.KindOf(err).Error()
	}
}

func (m manifests) apply(ctx context.Context, o manifest.Object) (pod.Change, error) {
	switch {
	case o.Pod != nil:
		return m.o.Pods.Apply(ctx, *o.Pod)
	case o.Config != nil:
		return m.o.Pods.ApplyConfig(ctx, *o.Config)
	}
	old, err := m.o.Volumes.Claim(ctx, o.Namespace, o.Name)
	existed := err == nil
	c, err := m.o.Volumes.CreateClaim(ctx, *o.Claim)
	switch {
	case err != nil:
		return "", err
	case !existed:
		return pod.ChangeCreated, nil
	case c.SizeBytes != old.SizeBytes:
		return pod.ChangeUpdated, nil
	}
	return pod.ChangeUnchanged, nil
}

// Delete removes objects; pods go first, since they hold the others.
func (m manifests) Delete(ctx context.Context, req *connect.Request[orlopv1.DeleteRequest]) (*connect.Response[orlopv1.DeleteResponse], error) {
	var refs []manifest.Ref
	for _, r := range req.Msg.Refs {
		ns := r.Namespace
		if ns == "" {
			ns = req.Msg.Namespace
		}
		refs = append(refs, manifest.Ref{Kind: r.Kind, Namespace: cmp.Or(ns, "default"), Name: r.Name})
	}
	if len(req.Msg.Files) > 0 {
		objects, err := manifest.Decode(decode(req.Msg.Files), req.Msg.Namespace)
		if err != nil {
			return nil, err
		}
		for _, o := range objects {
			refs = append(refs, o.Ref)
		}
	}
	if len(refs) == 0 {
		return nil, errs.New(errs.Invalid, "nothing is named to be deleted")
	}
	var grace *time.Duration
	if req.Msg.Grace != nil {
		d := req.Msg.Grace.AsDuration()
		grace = &d
	}
	resp := &orlopv1.DeleteResponse{Results: make([]*orlopv1.ObjectResult, len(refs))}
	for _, podsNow := range []bool{true, false} {
		for i, ref := range refs {
			if (ref.Kind == manifest.KindPod) != podsNow {
				continue
			}
			r := result(ref, "", 0)
			resp.Results[i] = r
			r.Change = "deleted"
			err := m.delete(ctx, ref, pod.DeleteOptions{Grace: grace, Wait: !req.Msg.NoWait})
			if req.Msg.IgnoreMissing && errs.KindOf(err) == errs.NotFound {
				r.Change, err = "unchanged", nil
			}
			fail(r, err)
		}
	}
	return connect.NewResponse(resp), nil
}

func (m manifests) delete(ctx context.Context, ref manifest.Ref, o pod.DeleteOptions) error {
	switch ref.Kind {
	case manifest.KindPod:
		return m.o.Pods.Delete(ctx, key(ref.Namespace, ref.Name), o)
	case manifest.KindClaim:
		if _, err := m.o.Volumes.Claim(ctx, ref.Namespace, ref.Name); err != nil {
			return err
		}
		return m.o.Volumes.DeleteClaim(ctx, ref.Namespace, ref.Name)
	case manifest.KindConfigMap, manifest.KindSecret:
		return m.o.Pods.DeleteConfig(ctx, ref.Kind == manifest.KindSecret, ref.Namespace, ref.Name)
	}
	return errs.New(errs.Invalid, "kind %q is none of Pod, PersistentVolumeClaim, ConfigMap, Secret", ref.Kind)
}
