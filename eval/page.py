"""The style of report pages: light, readable, one column on a phone."""

from __future__ import annotations

STYLE = """
:root{--ink:#1c2430;--soft:#5d6878;--line:#e3e7ee;--wash:#f6f8fb;--blue:#2563eb;--truth:#009e73;--answer:#c85f00}
*{box-sizing:border-box}
body{margin:0;background:#fff;color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;
-webkit-text-size-adjust:100%}
main{max-width:1120px;margin:0 auto;padding:32px 20px 64px}
h1{font-size:2rem;letter-spacing:-.02em;margin:0 0 4px}
h2{font-size:1.35rem;margin:40px 0 10px;padding-top:20px;
border-top:1px solid var(--line);overflow-wrap:anywhere}
h3{font-size:1.05rem;margin:28px 0 8px}
h4{font-size:1rem;margin:26px 0 4px}
h5{font-size:.8rem;margin:12px 0 6px;font-weight:600}
h5::before{content:"";display:inline-block;width:9px;height:9px;border-radius:50%;margin-right:7px;background:#94a3b8}
h5.good::before{background:var(--truth)}h5.bad::before{background:#d43d2a}
.lead{font-size:1.1rem;color:var(--soft);max-width:46em;margin:0}
.small{font-size:.85rem;color:var(--soft);margin:6px 0}ul.small{padding-left:18px}
.warn{background:#fff7e6;border-left:3px solid #f0a500;padding:8px 12px;border-radius:4px;font-size:.92rem;
overflow-wrap:anywhere}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(170px,1fr));gap:10px 20px;margin:0 0 14px;
background:var(--wash);border:1px solid var(--line);border-radius:10px;padding:12px 16px}
.facts dt{font-size:.74rem;color:var(--soft)}
.facts div:last-child{grid-column:1/-1}.facts dd{margin:0;font-size:.9rem;overflow-wrap:anywhere}
.wide{overflow-x:auto;border:1px solid var(--line);border-radius:10px}
table{border-collapse:collapse;width:100%;font-size:.88rem;font-variant-numeric:tabular-nums;white-space:nowrap}
th,td{padding:7px 12px;text-align:right;border-bottom:1px solid var(--line)}
thead th{background:var(--wash);font-weight:600;color:var(--soft)}
tbody th,.text{text-align:left}tbody th{font-weight:500}
thead th:first-child,tbody th{position:sticky;left:0;background:#fff}
thead th:first-child{background:var(--wash)}
tbody tr:last-child>*{border-bottom:0}tr.main>*{font-weight:650}tr.sizes>*{color:var(--soft);font-size:.8rem}
td.bar{background:linear-gradient(90deg,#e4e9f1 var(--v),transparent var(--v)) no-repeat left bottom/100% 4px}
tr.main td.bar{background-image:linear-gradient(90deg,var(--blue) var(--v),transparent var(--v))}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,330px),1fr));gap:14px}
.large{grid-template-columns:repeat(auto-fill,minmax(min(100%,480px),1fr))}
figure{margin:0;border:1px solid var(--line);border-radius:10px;padding:8px;background:#fff}
.panels{display:grid;grid-template-columns:repeat(3,1fr);gap:6px;align-items:start}
.p{position:relative;width:100%;background-size:100% 100%;border-radius:4px;overflow:hidden;
-webkit-print-color-adjust:exact;print-color-adjust:exact}
.p img{position:absolute;inset:0;width:100%;height:100%;image-rendering:auto}
.off{background-color:#fff;background-blend-mode:luminosity}
.off i{position:absolute;left:0;right:0;bottom:0;background:#1c2430cc;color:#fff;font-size:.72rem;
text-align:center;
font-style:normal;padding:1px 2px}
figcaption{font-size:.9rem;margin:7px 2px 0;overflow-wrap:anywhere}
figcaption span{display:block;font-size:.8rem;color:var(--soft);font-variant-numeric:tabular-nums}
figcaption small{display:block;font-size:.68rem;color:#8b95a5}
.truth{color:var(--truth)}.answer{color:var(--answer)}
.curve{width:100%;max-width:900px;height:auto;border:1px solid var(--line);border-radius:10px}
@media(max-width:560px){main{padding:20px 12px 48px}h1{font-size:1.6rem}}
""".replace("\n", "")
