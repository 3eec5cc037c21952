package control

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"

	"connectrpc.com/connect"

	orlopv1 "github.com/orlop-io/orlop/api/orlop/v1"
	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/pod"
	"github.com/orlop-io/orlop/internal/server/control/manifest"
	"github.com/orlop-io/orlop/internal/volume"
)

type manifests struct{ *server }

// order in which kinds are applied: what a pod needs comes before it. Deletion goes
// the other way.
var order = map[string]int{manifest.KindConfigMap: 0, manifest.KindSecret: 1, manifest.KindClaim: 2, manifest.KindPod: 3}

func decode(files []*orlopv1.File) []manifest.File {
	out := make([]manifest.File, len(files))
	for i, f := range files {
		out[i] = manifest.File{Name: f.GetName(), Content: f.GetContent()}
	}
	return out
}

// Apply implements the service.
func (m manifests) Apply(ctx context.Context, req *connect.Request[orlopv1.ApplyRequest]) (*connect.Response[orlopv1.ApplyResponse], error) {
	if len(req.Msg.GetFiles()) == 0 {
		return nil, errs.New(errs.Invalid, "no manifest is given")
	}
	objects, err := manifest.Decode(decode(req.Msg.GetFiles()), req.Msg.GetNamespace())
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(objects, func(a, b manifest.Object) int { return cmp.Compare(order[a.Kind], order[b.Kind]) })
	resp := &orlopv1.ApplyResponse{}
	for i := range objects {
		r := result(&objects[i])
		if req.Msg.GetDryRun() {
			r.Change = "valid"
		} else {
			change, note, err := m.apply(ctx, &objects[i])
			r.Change, r.Message = string(change), note
			m.fail(r, err)
		}
		resp.Results = append(resp.Results, r)
	}
	return connect.NewResponse(resp), nil
}

func result(o *manifest.Object) *orlopv1.ObjectResult {
	return &orlopv1.ObjectResult{Ref: &orlopv1.Ref{Kind: o.Kind, Namespace: o.Namespace, Name: o.Name}, File: o.File, Line: int32(o.Line)}
}

// fail notes an object's error. The others go on, so the request itself does not fail.
func (m manifests) fail(r *orlopv1.ObjectResult, err error) {
	if err == nil {
		return
	}
	kind := errs.KindOf(err)
	r.Change, r.Message, r.ErrorKind = "", err.Error(), kind.Error()
	if kind == errs.Internal {
		m.log.Warn("request failed for an object", "kind", r.Ref.Kind, "namespace", r.Ref.Namespace, "name", r.Ref.Name, "error", err)
	}
}

// apply makes the object so, and says in note what the user would not expect.
func (m manifests) apply(ctx context.Context, o *manifest.Object) (change pod.Change, note string, err error) {
	switch {
	case o.Pod != nil:
		change, err = m.o.Pods.Apply(ctx, *o.Pod)
		return change, "", err
	case o.Config != nil:
		change, err = m.o.Pods.ApplyConfig(ctx, *o.Config)
		return change, "", err
	}
	before, err := m.o.Volumes.Claim(ctx, o.Namespace, o.Name)
	existed := err == nil
	if err != nil && !errors.Is(err, errs.NotFound) {
		return "", "", err
	}
	after, err := m.o.Volumes.CreateClaim(ctx, *o.Claim)
	if err != nil {
		return "", "", err
	}
	if after.ResizePending && len(after.Holders) > 0 {
		note = "the volume has grown, its filesystem grows when no pod uses it any more: this machine does not let the daemon grow a mounted one (CAP_SYS_RESOURCE is missing)"
	}
	switch {
	case !existed || before.Phase == volume.Pending:
		return pod.ChangeCreated, note, nil
	case before.SizeBytes != after.SizeBytes || before.CapacityBytes != after.CapacityBytes ||
		!maps.Equal(before.Labels, after.Labels) || !maps.Equal(before.Annotations, after.Annotations):
		return pod.ChangeUpdated, note, nil
	}
	return pod.ChangeUnchanged, note, nil
}

// Delete implements the service. Of files only kinds and names are read, so that
// what another version applied can be deleted.
func (m manifests) Delete(ctx context.Context, req *connect.Request[orlopv1.DeleteRequest]) (*connect.Response[orlopv1.DeleteResponse], error) {
	q := req.Msg
	var objects []manifest.Object
	for _, r := range q.GetRefs() {
		if _, ok := order[r.GetKind()]; !ok {
			return nil, errs.New(errs.Invalid, "kind %q is none of Pod, PersistentVolumeClaim, ConfigMap, Secret", r.GetKind())
		}
		if r.GetName() == "" {
			return nil, errs.New(errs.Invalid, "the %s to be deleted is not named", r.GetKind())
		}
		objects = append(objects, manifest.Object{Ref: manifest.Ref{Kind: r.GetKind(), Namespace: cmp.Or(r.GetNamespace(), q.GetNamespace(), "default"), Name: r.GetName()}})
	}
	if len(q.GetFiles()) > 0 {
		more, err := manifest.Refs(decode(q.GetFiles()), q.GetNamespace())
		if err != nil {
			return nil, err
		}
		objects = append(objects, more...)
	}
	if len(objects) == 0 {
		return nil, errs.New(errs.Invalid, "nothing is named to be deleted")
	}
	o := pod.DeleteOptions{Wait: !q.GetNoWait()}
	if g := q.GetGrace(); g != nil {
		d := g.AsDuration()
		if d < 0 {
			return nil, errs.New(errs.Invalid, "the grace %s is negative", d)
		}
		o.Grace = &d
	}
	slices.SortStableFunc(objects, func(a, b manifest.Object) int { return cmp.Compare(order[b.Kind], order[a.Kind]) })
	resp := &orlopv1.DeleteResponse{Results: make([]*orlopv1.ObjectResult, len(objects))}
	done := func(i int, err error) {
		r := result(&objects[i])
		r.Change = "deleted"
		if errors.Is(err, errs.NotFound) && q.GetIgnoreMissing() {
			r.Change, err = string(pod.ChangeUnchanged), nil
		}
		m.fail(r, err)
		resp.Results[i] = r
	}
	// Pods take their time to stop: all of them at once.
	var wait sync.WaitGroup
	for i, obj := range objects {
		if obj.Kind == manifest.KindPod {
			wait.Go(func() { done(i, m.o.Pods.Delete(ctx, key(obj.Namespace, obj.Name), o)) })
		}
	}
	wait.Wait()
	for i, obj := range objects {
		switch obj.Kind {
		case manifest.KindConfigMap, manifest.KindSecret:
			done(i, m.o.Pods.DeleteConfig(ctx, obj.Kind == manifest.KindSecret, obj.Namespace, obj.Name))
		case manifest.KindClaim:
			done(i, m.named(ctx, m.o.Volumes.DeleteClaim(ctx, obj.Namespace, obj.Name)))
		}
	}
	return connect.NewResponse(resp), nil
}

// named puts pods' names in place of their ids, by which the domain of volumes
// knows its holders.
func (s *server) named(ctx context.Context, err error) error {
	if err == nil || errs.KindOf(err) != errs.InUse {
		return err
	}
	msg := err.Error()
	for id, name := range s.podNames(ctx) {
		msg = strings.ReplaceAll(msg, id, name)
	}
	return errs.New(errs.InUse, "%s", msg)
}
