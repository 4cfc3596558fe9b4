package server

import (
	"strings"
	"testing"

	"github.com/go-json-experiment/json"

	"nixfleet.dev/nixfleet/api"
)

func TestArtifactsHaveEntityTags(t *testing.T) {
	f := start(t)
	c := f.host("web-0")
	for path, etag := range map[string]string{"manifest": `"abc"`, "hosts/web-0": `"def-1"`} {
		path = "/v1/rollouts/" + testRollout + "/" + path
		r := f.get(c, path)
		if r.status != 200 || r.header.Get("ETag") != etag {
			t.Fatalf("%s: %d, ETag %s", path, r.status, r.header.Get("ETag"))
		}
		for _, known := range []string{etag, "W/" + etag, `"x", ` + etag, "*"} {
			req := f.request("GET", path, nil)
			req.Header.Set("If-None-Match", known)
			if r := f.do(c, req); r.status != 304 || len(r.body) > 0 || r.header.Get("ETag") != etag {
				t.Errorf("%s with %s: %d %s", path, known, r.status, r.body)
			}
		}
		req := f.request("GET", path, nil)
		req.Header.Set("If-None-Match", `"other"`)
		if r := f.do(c, req); r.status != 200 {
			t.Errorf("%s with another tag: %d", path, r.status)
		}
	}
	if r := f.get(f.operator(), "/v1/rollouts/"+testRollout+"/hosts"); r.status != 200 || r.header.Get("ETag") != `"def"` || len(r.body) == 0 {
		t.Errorf("hosts.jsonl: %d %s", r.status, r.body)
	}
	f.expect(f.get(c, "/v1/rollouts/stable@ffffffff/manifest"), 404, api.CodeUnknownRollout)
	for _, id := range []string{"stable", "stable@xyz", "STABLE@0a1b2c3d", "stable@0a1b2c", "-a@0a1b2c3d", "..@0a1b2c3d", "stable@" + strings.Repeat("a", 65)} {
		f.expect(f.get(c, "/v1/rollouts/"+id+"/manifest"), 400, api.CodeMalformed)
	}
	f.expect(f.get(c, "/v1/rollouts/"+testRollout+"/hosts/WEB_0"), 400, api.CodeMalformed)
}

func TestOperatorsSeeListsPageByPage(t *testing.T) {
	f := start(t)
	c := f.operator()
	var names []string
	next := ""
	for pages := 0; ; pages++ {
		var list api.List[api.Host]
		r := f.get(c, "/v1/hosts?limit=2&cursor="+next)
		if err := json.Unmarshal(r.body, &list); err != nil || r.status != 200 {
			t.Fatalf("%d %s", r.status, r.body)
		}
		for _, h := range list.Items {
			names = append(names, h.Hostname)
		}
		if next = list.NextCursor; next == "" {
			break
		}
		if pages > 5 {
			t.Fatal("the list does not end")
		}
	}
	if got := strings.Join(names, " "); got != "web-0 web-1 web-2 web-3 web-4" {
		t.Errorf("got %s", got)
	}
	for _, query := range []string{"limit=0", "limit=-1", "limit=x", "limit=1&limit=2", "cursor=%21", "state=Sleeping"} {
		f.expect(f.get(c, "/v1/hosts?"+query), 400, api.CodeMalformed)
	}
	f.expect(f.get(c, "/v1/hosts/nobody"), 404, api.CodeNotFound)
	f.expect(f.get(c, "/v1/hosts/nobody/why"), 404, api.CodeNotFound)
	f.expect(f.get(c, "/v1/rollouts/stable@ffffffff"), 404, api.CodeUnknownRollout)
	f.expect(f.get(c, "/v1/rollouts/stable@ffffffff/events"), 404, api.CodeUnknownRollout)

	var events api.List[api.LoggedEvent]
	r := f.get(c, "/v1/rollouts/"+testRollout+"/events?after=3&limit=4")
	if err := json.Unmarshal(r.body, &events); err != nil || len(events.Items) != 4 || events.Items[0].LogSeq != 4 || events.NextCursor != "7" {
		t.Errorf("got %v, %s", err, r.body)
	}
	if r := f.get(c, "/v1/channels"); r.status != 200 || !strings.Contains(string(r.body), `"stable"`) {
		t.Errorf("channels: %d %s", r.status, r.body)
	}
}
