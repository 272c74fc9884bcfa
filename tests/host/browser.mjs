// A user at the keyboard: `node browser.mjs job.json` opens ComfyUI in Chromium and prints one JSON.
//
// job: {url, chromium, modules, export: [{name, graph, layout}], drop: [{file, shot, before, widgets}]}
// export: load a graph in API format, arrange it, return it as the frontend writes workflow files.
// drop: drop a workflow file on the canvas, look for red nodes and dialogs, press Run, wait, take a picture;
// and another one before Run, where `before` names its file.
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { basename } from 'node:path'

const job = JSON.parse(readFileSync(process.argv[2], 'utf8'))
const { chromium } = createRequire(`${job.modules}/`)('playwright-core')
const browser = await chromium.launch({
  executablePath: job.chromium,
  args: ['--no-sandbox', '--disable-gpu', '--enable-unsafe-swiftshader'],
})

async function open() {
  const page = await browser.newPage({ viewport: { width: 1600, height: 900 } })
  page.setDefaultTimeout(300_000)
  page.complaints = []
  page.on('pageerror', (error) => page.complaints.push(String(error)))
  await page.goto(job.url)
  await page.waitForFunction(() => window.app?.graph && window.LiteGraph?.registered_node_types?.UniVidLoad)
  // The start page loads a graph of its own, whose model is missing, and marks node 4 of it red a moment later:
  // by then it must not be ours.
  const marked = () => app.graph._nodes.some((node) => node.has_errors)
  await page.waitForFunction(marked, null, { timeout: 15_000 }).catch(() => {})
  return page
}

// Runs in the page.
async function arrange({ name, graph, layout }) {
  app.loadApiJson(structuredClone(graph), name)
  await new Promise((done) => setTimeout(done, 1500))
  const nodes = [...app.graph._nodes]
  const byId = new Map(nodes.map((node) => [String(node.id), node]))
  const sources = (node) =>
    Object.values(graph[node.id].inputs).filter(Array.isArray).map(([id]) => byId.get(String(id)))
  const users = (node) => nodes.filter((other) => sources(other).includes(node))

  // A node stands one column right of the last of its sources; one without sources, left of its first user.
  const columnOf = new Map()
  const column = (node) => {
    if (!columnOf.has(node)) columnOf.set(node, Math.max(0, ...sources(node).map((s) => column(s) + 1)))
    return columnOf.get(node)
  }
  nodes.forEach(column)
  for (const node of nodes)
    if (!sources(node).length && node.type !== 'UniVidLoad')
      columnOf.set(node, Math.max(0, Math.min(...users(node).map(column)) - 1))

  const SIZES = {
    UniVidEncodeDualPrompt: [360, 300], UniVidPSTSampler: [320, 400], UniVidModalityWeights: [320, 500],
    UniVidModalitySweep: [420, 620], LoadImage: [280, 330], LoadVideo: [280, 330], SaveVideo: [360, 460],
    SaveImage: [520, 460],
  }
  for (const node of nodes) {
    const [width, height] = node.computeSize()
    const [wide, high] = SIZES[node.type] ?? [270, 0]
    node.setSize([Math.max(width, wide), Math.max(height, high)])
    if (layout.sizes?.[node.id]) node.setSize(layout.sizes[node.id])
    if (layout.titles?.[node.id]) node.title = layout.titles[node.id]
    if (layout.models?.[node.id]) node.properties.models = [layout.models[node.id]]
  }
  let x = 0
  for (let c = 0; c <= Math.max(...columnOf.values()); c++) {
    const here = nodes.filter((node) => columnOf.get(node) === c)
    const height = (node) => {
      const ys = sources(node).map((source) => source.pos[1])
      return ys.length ? ys.reduce((a, b) => a + b, 0) / ys.length : Infinity
    }
    here.sort((a, b) => height(a) - height(b) || a.id - b.id)
    let y = layout.tops?.[c] ?? 0
    for (const node of here) {
      node.pos = [x, y]
      y += Math.ceil((node.size[1] + 70) / 10) * 10
    }
    x += Math.ceil((Math.max(0, ...here.map((node) => node.size[0])) + 60) / 10) * 10
  }
  const note = LiteGraph.createNode('MarkdownNote')
  note.title = 'About this workflow'
  app.graph.add(note)
  note.widgets[0].value = layout.note
  const high = layout.note_height ?? 190
  note.setSize([700, high])
  note.pos = [0, -high - 70]
  await new Promise((done) => setTimeout(done, 500))
  return app.graph.serialize()
}

async function look(page, file) {
  const workflow = JSON.parse(readFileSync(file, 'utf8'))
  await page.evaluate(
    ({ text, name }) => {
      const data = new DataTransfer()
      data.items.add(new File([text], name, { type: 'application/json' }))
      const canvas = document.querySelector('#graph-canvas')
      for (const type of ['dragover', 'drop'])
        canvas.dispatchEvent(
          new DragEvent(type, { dataTransfer: data, bubbles: true, cancelable: true, clientX: 800, clientY: 450 })
        )
    },
    { text: JSON.stringify(workflow), name: basename(file) }
  )
  await page.waitForFunction((n) => app.graph._nodes.length === n, workflow.nodes.length)
  await page.waitForTimeout(1500) // dialogs about missing nodes come a moment later
  return page.evaluate(() => ({
    red: app.graph._nodes
      .filter((n) => n.has_errors || !(n.type in LiteGraph.registered_node_types))
      .map((n) => n.type),
    dialogs: [...document.querySelectorAll('.p-dialog, [role=dialog], .p-toast-message-error')]
      .map((d) => d.innerText.trim())
      .filter(Boolean),
  }))
}

async function run(page, widgets) {
  return page.evaluate(async (values) => {
    for (const node of app.graph._nodes)
      for (const widget of node.widgets ?? []) if (widget.name in values) widget.value = values[widget.name]
    const ended = new Promise((resolve) => {
      for (const kind of ['execution_success', 'execution_error', 'execution_interrupted'])
        app.api.addEventListener(kind, (event) => resolve({ kind, ...event.detail }), { once: true })
    })
    await app.queuePrompt(0, 1)
    const errors = app.lastNodeErrors ?? {}
    return Object.keys(errors).length ? { kind: 'refused', errors } : ended
  }, widgets)
}

async function photograph(page, shot, videos = 0) {
  await page.evaluate(() => {
    const boxes = app.graph._nodes.map((node) => [...node.pos, node.pos[0] + node.size[0], node.pos[1] + node.size[1]])
    const left = Math.min(...boxes.map((b) => b[0])), right = Math.max(...boxes.map((b) => b[2]))
    const top = Math.min(...boxes.map((b) => b[1])) - 30, bottom = Math.max(...boxes.map((b) => b[3]))
    const scale = Math.min(1460 / (right - left), 690 / (bottom - top), 1)
    app.canvas.ds.scale = scale
    app.canvas.ds.offset[0] = 90 / scale - left + (1460 / scale - (right - left)) / 2
    app.canvas.ds.offset[1] = 130 / scale - top
    app.canvas.setDirty(true, true)
  })
  const playing = (n) => document.querySelectorAll('video').length >= n
  await page.waitForFunction(playing, videos, { timeout: 30_000 }).catch(() => {})
  await page.waitForTimeout(2500) // pictures arrive and the page redraws
  await page.screenshot({ path: shot })
}

const answer = { exported: {}, dropped: {} }
try {
  if (job.export) {
    const page = await open()
    for (const item of job.export) answer.exported[item.name] = await page.evaluate(arrange, item)
  }
  for (const { file, shot, before, widgets } of job.drop ?? []) {
    const page = await open()
    const seen = await look(page, file)
    seen.prompt = await page.evaluate(async () => (await app.graphToPrompt()).output)
    if (before) await photograph(page, before)
    seen.end = seen.red.length ? null : await run(page, widgets ?? {})
    seen.players = await page.evaluate(() => app.graph._nodes.filter((n) => /(Load|Save)Video/.test(n.type)).length)
    await photograph(page, shot, seen.players)
    seen.videos = await page.evaluate(() => document.querySelectorAll('video').length)
    answer.dropped[basename(file, '.json')] = { ...seen, complaints: page.complaints }
    await page.close()
  }
} finally {
  await browser.close()
}
console.log(JSON.stringify(answer))
