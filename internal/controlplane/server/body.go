package server

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"os"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/strictjson"
)

// setDeadlines gives a request the time of its body and of its response, also where it is refused without
// being read: net/http then reads on before it answers.
func (s *Server) setDeadlines(w http.ResponseWriter, r *http.Request) error {
	control, until := http.NewResponseController(w), s.clock.Now()
	if r.ContentLength != 0 {
		until = until.Add(s.timeouts.body)
		if err := control.SetReadDeadline(until); err != nil {
			return fmt.Errorf("setting the deadline of a body: %w", err)
		}
	}
	// The response has its own time after the body's, or one about a slow body would never go out.
	if err := control.SetWriteDeadline(until.Add(s.timeouts.write)); err != nil {
		return fmt.Errorf("setting the deadline of a response: %w", err)
	}
	return nil
}

// readBody decodes a request's JSON body of at most limit bytes.
func readBody[T any](s *Server, w http.ResponseWriter, r *http.Request, limit int64) (T, error) {
	var zero T
	if media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || media != "application/json" {
		return zero, Refuse(api.CodeMalformed, "Content-Type is not application/json")
	}
	data, err := s.readAll(w, r, limit)
	if err != nil {
		return zero, err
	}
	v, err := strictjson.Decode[T]("request body", data, int(limit))
	if err != nil {
		return zero, Refuse(api.CodeMalformed, "%s", err)
	}
	return v, nil
}

func (s *Server) readAll(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	tooLarge := closing(Refuse(api.CodeTooLarge, "the body is over %d bytes", limit))
	if r.ContentLength > limit {
		return nil, tooLarge
	}
	var body bytes.Buffer
	if r.ContentLength > 0 {
		body.Grow(int(r.ContentLength) + bytes.MinRead)
	}
	_, err := body.ReadFrom(http.MaxBytesReader(w, r.Body, limit))
	if _, over := errors.AsType[*http.MaxBytesError](err); over {
		return nil, tooLarge
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, closing(Refuse(api.CodeMalformed, "the body did not arrive within %s", s.timeouts.body))
	}
	if err != nil {
		return nil, closing(Refuse(api.CodeMalformed, "the body did not arrive whole"))
	}
	return body.Bytes(), http.NewResponseController(w).SetReadDeadline(time.Time{})
}

// reply writes v as JSON with status 200.
func reply(w http.ResponseWriter, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = w.Write(data) // the peer has gone away, if this fails
	return nil
}

func noContent(w http.ResponseWriter) error {
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// replyBlob writes data under its ETag, or 304 where the client has it.
func (s *Server) replyBlob(w http.ResponseWriter, r *http.Request, contentType string, b Blob) error {
	etag := `"` + b.ETag + `"`
	w.Header().Set("ETag", etag)
	w.Header().Set("Cache-Control", "private, no-cache")
	if matches(r.Header.Values("If-None-Match"), etag) {
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	// Large lists go to slow readers too, so long as they take 64 KiB a second.
	deadline := s.timeouts.write + time.Duration(len(b.Data)/(64<<10))*time.Second
	if err := http.NewResponseController(w).SetWriteDeadline(s.clock.Now().Add(deadline)); err != nil {
		return err
	}
	w.Header().Set("Content-Type", contentType)
	_, _ = io.Copy(w, bytes.NewReader(b.Data)) // the peer has gone away, if this fails
	return nil
}
