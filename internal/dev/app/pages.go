package app

import "github.com/iapmesh/iapmesh/internal/dev/page"

const callerRows = `{{define "caller"}}{{if .Verified}}{{with .Claims}}
<tr><th scope="row">E-mail</th><td>{{.Email}}</td></tr><tr><th scope="row">Subject</th><td><code>{{.Subject}}</code></td></tr>
<tr><th scope="row">Groups</th><td>{{if .Groups}}{{join .Groups ", "}}{{else}}<span class="soft">none</span>{{end}}</td></tr>
<tr><th scope="row">Session</th><td><code>{{.SessionID}}</code></td></tr>{{end}}
<tr><th scope="row">Assertion</th><td class="good">verified</td></tr>{{else}}
<tr><th scope="row">Assertion</th><td class="bad">not verified: {{.Reason}}</td></tr>{{end}}{{end}}
{{define "where"}}{{if .ServedBy}}<tr><th scope="row">Served by region</th><td>{{.ServedBy}}</td></tr>{{end}}
{{if .Region}}<tr><th scope="row">Application in region</th><td>{{.Region}}</td></tr>{{end}}{{end}}`

// The pages. They are parsed once and never change.
var (
	homeTemplate = page.Parse(callerRows + `{{define "title"}}{{.App}}{{end}}{{define "body"}}<main>
<p><span class="tag">Development application: {{.App}}</span></p>
<h1>{{if .Verified}}Hello, {{or .Claims.Name .Claims.Email .Claims.Subject}}{{else}}Hello, whoever you are{{end}}</h1>
<p class="soft">This is what the application knows of you, and from whom.</p>
<div class="scroll"><table><tbody>{{template "caller" .}}{{template "where" .}}
<tr><th scope="row">Host</th><td>{{.Host}}</td></tr><tr><th scope="row">Reached from</th><td>{{.Remote}}, {{.Proto}}</td></tr></tbody></table></div>
<nav><a href="/json">The request as JSON</a><a href="/sse">A stream of events</a><a href="/upload">Upload a file</a><a href="/.iapmesh/routes">Your applications</a><a href="/.iapmesh/sign_out">Sign out</a></nav>
</main>{{end}}`)

	uploadTemplate = page.Parse(`{{define "title"}}Upload to {{.App}}{{end}}{{define "body"}}<main class="narrow">
<p><span class="tag">Development application: {{.App}}</span></p><h1>Upload a file</h1>
<p class="soft">It is counted and hashed as it arrives, and not kept.</p>
<form method="post" action="/upload" enctype="multipart/form-data"><label for="file">File</label><input id="file" name="file" type="file" required>
<button type="submit">Upload</button></form><nav><a href="/">Back</a></nav></main>{{end}}`)

	invoiceTemplate = page.Parse(`{{define "title"}}Invoice {{.Number}}{{end}}{{define "body"}}<main>
<p><span class="tag">Development application: {{.App}}</span></p><h1>Invoice {{.Number}}</h1>
<p>For <strong>{{.User}}</strong>, {{if .Groups}}of {{join .Groups ", "}}{{else}}of no group{{end}}{{if .ServedBy}} <span class="soft">(served by {{.ServedBy}})</span>{{end}}</p>
<div class="scroll"><table><thead><tr><th scope="col">Position</th><th scope="col" class="num">Quantity</th><th scope="col" class="num">Each</th><th scope="col" class="num">Amount</th></tr></thead>
<tbody>{{range .Lines}}<tr><td>{{.Text}}</td><td class="num">{{.Quantity}}</td><td class="num">{{.Each}}</td><td class="num">{{.Amount}}</td></tr>{{end}}
<tr><th scope="row" colspan="3">Total</th><td class="num"><strong>{{.Total}}</strong></td></tr></tbody></table></div>
<nav><a href="/.iapmesh/routes">Your applications</a><a href="/.iapmesh/sign_out">Sign out</a></nav></main>{{end}}`)

	refusedTemplate = page.Parse(`{{define "title"}}Not for you{{end}}{{define "body"}}<main class="narrow">
<p><span class="tag">Development application</span></p><h1>This application does not know you</h1>
<p class="alert" role="alert">{{.Reason}}</p><p>It serves only requests that carry the mesh's verified assertion.</p></main>{{end}}`)
)
