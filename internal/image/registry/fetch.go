package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/orlop-io/orlop/internal/base/errs"
)

// Manifest fetches the manifest or index of that tag or digest, of at most limit
// bytes. What came by digest is verified.
func (r *Repository) Manifest(ctx context.Context, ref, accept string, limit int64) (data []byte, mediaType string, err error) {
	byTag := digest.Digest(ref).Validate() != nil
	err = r.each(ctx, byTag, func(e *endpoint) error {
		resp, err := e.get(ctx, "manifests/"+ref, http.Header{"Accept": {accept}}, http.StatusOK)
		if err != nil {
			return err
		}
		body := r.c.watch(resp)
		defer body.Close()
		data, err = io.ReadAll(io.LimitReader(body, limit+1))
		if err != nil {
			return classify(err, e.host)
		}
		if int64(len(data)) > limit {
			return errs.New(errs.Invalid, "the manifest is larger than %d bytes", limit)
		}
		if resp.ContentLength >= 0 && int64(len(data)) != resp.ContentLength {
			return errs.New(errs.Unavailable, "%s: the manifest came with %d of %d bytes", e.host, len(data), resp.ContentLength)
		}
		got := digest.FromBytes(data)
		want := digest.Digest(ref)
		if byTag {
			want = digest.Digest(resp.Header.Get("Docker-Content-Digest"))
		}
		if want.Validate() == nil && want.Algorithm() == digest.SHA256 && want != got {
			return errs.New(errs.Corrupt, "%s: the manifest's digest is %s, not %s", e.host, got, want)
		}
		mediaType = resp.Header.Get("Content-Type")
		return nil
	})
	return data, mediaType, err
}

// Referrers fetches the index of what refers to the manifest of that digest
// (distribution-spec 1.1, listing referrers), of at most limit bytes: by the API, and
// by the tag that stands for it where a registry does not have the API.
func (r *Repository) Referrers(ctx context.Context, d digest.Digest, limit int64) (data []byte, err error) {
	err = r.each(ctx, false, func(e *endpoint) error {
		resp, err := e.get(ctx, "referrers/"+d.String(), http.Header{"Accept": {ocispec.MediaTypeImageIndex}},
			http.StatusOK, http.StatusBadRequest, http.StatusMethodNotAllowed, http.StatusNotImplemented)
		if err != nil {
			return err
		}
		if resp.StatusCode != http.StatusOK {
			resp.Body.Close()
			return errs.New(errs.NotFound, "%s has no list of referrers: %s", e.host, resp.Status)
		}
		body := r.c.watch(resp)
		defer body.Close()
		if data, err = io.ReadAll(io.LimitReader(body, limit+1)); err != nil {
			return classify(err, e.host)
		}
		if int64(len(data)) > limit {
			return errs.New(errs.Invalid, "%s: the list of referrers is larger than %d bytes", e.host, limit)
		}
		return nil
	})
	if errors.Is(err, errs.NotFound) {
		data, _, err = r.Manifest(ctx, d.Algorithm().String()+"-"+d.Encoded(), ocispec.MediaTypeImageIndex, limit)
	}
	return data, err
}

// Apart returns the repository at each of its places alone, in the order in which
// they are asked.
func (r *Repository) Apart() []*Repository {
	var all []*Repository
	for _, e := range r.endpoints {
		all = append(all, &Repository{c: r.c, name: r.name, endpoints: []*endpoint{e}})
	}
	return all
}

// each tries the endpoints in order until one succeeds: mirrors once, and not
// again for this repository when one was out of reach, the registry a few times.
// What a tag means is asked of those only that may say so.
func (r *Repository) each(ctx context.Context, byTag bool, try func(*endpoint) error) error {
	var all []error
	for i, e := range r.endpoints {
		var err error
		if !e.pull || byTag && !e.resolve {
			continue
		}
		if i < len(r.endpoints)-1 {
			if e.down.Load() {
				continue
			}
			err = try(e)
			e.down.Store(errors.Is(err, errs.Unavailable))
		} else {
			err = r.c.retry(ctx, func() error { return try(e) })
		}
		if err == nil || ctx.Err() != nil {
			return err
		}
		if len(r.endpoints) > 1 {
			r.c.o.Log.Debug("registry endpoint failed", "repository", r.name, "endpoint", e.host, "err", err)
		}
		all = append(all, err)
	}
	switch len(all) {
	case 0:
		return errs.New(errs.Invalid, "no host that is configured for %s may be asked for it; one needs the capabilities pull and resolve in hosts.toml", r.name)
	case 1:
		return all[0]
	}
	last := all[len(all)-1] // the registry's own answer decides the kind
	return errs.New(errs.KindOf(last), "%w", errors.Join(all...))
}

// retry repeats what failed for a reason that may pass.
func (c *Client) retry(ctx context.Context, fn func() error) error {
	for n := 0; ; n++ {
		err := fn()
		if err == nil || ctx.Err() != nil || !errors.Is(err, errs.Unavailable) || n >= len(c.backoff) {
			return err
		}
		if wait(ctx, max(c.backoff[n], retryAfter(err))) != nil {
			return err
		}
	}
}

func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// busy is an answer that says when to come again.
type busy struct {
	error
	after time.Duration
}

func (b busy) Unwrap() error { return b.error }

func retryAfter(err error) time.Duration {
	var b busy
	if errors.As(err, &b) {
		return b.after
	}
	return 0
}

// maxRetryAfter bounds what a registry may make us wait.
const maxRetryAfter = 30 * time.Second

// get asks the endpoint for something of the repository. Every status but those
// wanted is an error.
func (e *endpoint) get(ctx context.Context, what string, header http.Header, want ...int) (*http.Response, error) {
	client, scheme, err := e.connect(ctx, what)
	if err != nil {
		return nil, classify(err, e.host)
	}
	ctx, cancel := context.WithCancel(ctx)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, e.url(scheme, what).String(), nil)
	if err != nil {
		cancel()
		return nil, err
	}
	for k, v := range header {
		req.Header[k] = v
	}
	resp, err := client.Do(req)
	if err != nil {
		cancel()
		return nil, classify(err, e.host)
	}
	for _, code := range want {
		if resp.StatusCode == code {
			resp.Body = &cancelBody{resp.Body, cancel}
			return resp, nil
		}
	}
	defer cancel()
	defer resp.Body.Close()
	text := resp.Status
	if terr := transport.CheckError(resp, http.StatusOK); terr != nil {
		text = terr.Error()
	}
	err = statusError(resp.StatusCode, text, e.host)
	if s, perr := strconv.Atoi(resp.Header.Get("Retry-After")); perr == nil && s > 0 {
		err = errs.As(errs.KindOf(err), busy{err, min(time.Duration(s)*time.Second, maxRetryAfter)})
	}
	return nil, err
}

type cancelBody struct {
	io.ReadCloser
	cancel context.CancelFunc
}

func (b *cancelBody) Close() error {
	b.cancel()
	return b.ReadCloser.Close()
}

// watch breaks the body off when no byte comes for a while.
func (c *Client) watch(resp *http.Response) io.ReadCloser {
	w := &watched{ReadCloser: resp.Body, stall: c.stall}
	if cb, ok := resp.Body.(*cancelBody); ok {
		w.timer = time.AfterFunc(c.stall, cb.cancel)
	}
	return w
}

type watched struct {
	io.ReadCloser
	stall time.Duration
	timer *time.Timer
}

func (w *watched) Read(b []byte) (int, error) {
	n, err := w.ReadCloser.Read(b)
	if w.timer != nil {
		if !w.timer.Reset(w.stall) && err != nil && err != io.EOF {
			err = fmt.Errorf("no byte came for %v", w.stall)
		}
	}
	return n, err
}

func (w *watched) Close() error {
	if w.timer != nil {
		w.timer.Stop()
	}
	return w.ReadCloser.Close()
}

// Blob returns the content of that digest and size. It is not verified against the
// digest; its length is. When the connection breaks it goes on from where it was
// by a Range request, calling broken (which may be nil) before each attempt.
func (r *Repository) Blob(ctx context.Context, d digest.Digest, size int64, broken func(error)) (io.ReadCloser, error) {
	b := &blob{ctx: ctx, r: r, digest: d, size: size, broken: broken}
	if err := b.open(); err != nil {
		return nil, err
	}
	return b, nil
}

type blob struct {
	ctx    context.Context
	r      *Repository
	digest digest.Digest
	size   int64
	broken func(error)

	body  io.ReadCloser
	host  string
	off   int64
	tries int   // since the last progress
	total int   // ever
	from  int64 // off when tries was reset
}

// maxBroken bounds how often one blob is taken up again, whatever its progress.
const maxBroken = 100

// progressBytes reset the count of attempts.
const progressBytes = 1 << 20

func (b *blob) open() error {
	return b.r.each(b.ctx, false, func(e *endpoint) error {
		header := http.Header{}
		want := []int{http.StatusOK}
		if b.off > 0 {
			header.Set("Range", fmt.Sprintf("bytes=%d-", b.off))
			want = append(want, http.StatusPartialContent)
		}
		resp, err := e.get(b.ctx, "blobs/"+b.digest.String(), header, want...)
		if err != nil {
			return err
		}
		skip := b.off
		if resp.StatusCode == http.StatusPartialContent {
			if !strings.HasPrefix(resp.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", b.off)) {
				resp.Body.Close()
				return errs.New(errs.Corrupt, "%s answered the range from %d with %q", e.host, b.off, resp.Header.Get("Content-Range"))
			}
			skip = 0
		}
		if n := b.size - b.off + skip; resp.ContentLength >= 0 && resp.ContentLength != n {
			resp.Body.Close()
			return errs.New(errs.Corrupt, "%s says that the content has %d bytes; the manifest says %d", e.host, resp.ContentLength+b.off-skip, b.size)
		}
		body := b.r.c.watch(resp)
		if skip > 0 { // it does not do ranges
			if _, err := io.CopyN(io.Discard, body, skip); err != nil {
				body.Close()
				return classify(err, e.host)
			}
		}
		b.body, b.host = body, e.host
		return nil
	})
}

func (b *blob) Read(p []byte) (int, error) {
	for {
		if b.body == nil {
			if err := b.open(); err != nil {
				return 0, err
			}
		}
		n, err := b.body.Read(p)
		b.off += int64(n)
		if b.off-b.from >= progressBytes {
			b.tries, b.from = 0, b.off
		}
		if err == nil || err == io.EOF && b.off >= b.size {
			return n, err
		}
		if b.ctx.Err() != nil {
			return n, b.ctx.Err()
		}
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if b.off >= b.size { // all is here; what follows does not matter
			return n, io.EOF
		}
		b.body.Close()
		b.body = nil
		if b.tries >= len(b.r.c.backoff) || b.total >= maxBroken {
			return n, errs.New(errs.Unavailable, "the connection to %s broke %d times, last after %d of %d bytes: %w", b.host, b.total+1, b.off, b.size, err)
		}
		if b.broken != nil {
			b.broken(err)
		}
		werr := wait(b.ctx, b.r.c.backoff[b.tries])
		b.tries++
		b.total++
		if n > 0 || werr != nil {
			return n, werr
		}
	}
}

func (b *blob) Close() error {
	if b.body == nil {
		return nil
	}
	return b.body.Close()
}
