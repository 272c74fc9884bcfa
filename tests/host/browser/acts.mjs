// What a user does: opens the page, drops a workflow, presses Run, opens help, searches for a node.
import { readFileSync } from 'node:fs'
import { basename } from 'node:path'
import { media, nodes } from './measure.mjs'

export const WINDOW = { width: 1600, height: 1000 }

export async function open(browser, url) {
  const page = await browser.newPage({ viewport: WINDOW })
  page.setDefaultTimeout(300_000)
  page.complaints = []
  page.on('pageerror', (error) => page.complaints.push(String(error)))
  page.underway = new Set() // pictures and clips that were asked for
  page.on('request', (request) => /image|media/.test(request.resourceType()) && page.underway.add(request))
  for (const end of ['requestfinished', 'requestfailed']) page.on(end, (request) => page.underway.delete(request))
  await page.goto(url)
  await page.waitForFunction(() => window.app?.graph && window.LiteGraph?.registered_node_types?.UniVidLoad)
  // The start page loads a graph of its own, whose model is missing, and marks node 4 of it red a moment later:
  // by then it must not be ours.
  const marked = () => app.graph._nodes.some((node) => node.has_errors)
  await page.waitForFunction(marked, null, { timeout: 15_000 }).catch(() => {})
  return page
}

// Wait until boxes, pictures and dialogs have stayed the same for a second and no file is underway; 4 seconds at most.
async function settle(page) {
  let last, since
  for (const start = Date.now(); Date.now() - start < 4000; await page.waitForTimeout(100)) {
    const seen = JSON.stringify([await page.evaluate(nodes), await page.evaluate(media), await complaints(page)])
    if (seen !== last || page.underway.size) [last, since] = [seen, Date.now()]
    else if (Date.now() - since >= 1000) return
  }
}

// The types of nodes that are red, and the words of dialogs; those about missing nodes may come a moment later.
export const complaints = (page) =>
  page.evaluate(() => ({
    red: app.graph._nodes
      .filter((n) => n.has_errors || !(n.type in LiteGraph.registered_node_types))
      .map((n) => n.type),
    dialogs: [...document.querySelectorAll('.p-dialog, [role=dialog], .p-toast-message-error')]
      .map((d) => d.innerText.trim())
      .filter(Boolean),
  }))

// Drop a workflow's file on the canvas: what is to complain about.
export async function drop(page, file) {
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
  await page.waitForFunction((id) => app.graph.id === id, workflow.id)
  await settle(page)
  return complaints(page)
}

// Press Run with these values in the widgets that have such names, alone or behind the type of their node and a dot,
// and wait for the end.
export async function run(page, widgets) {
  const end = await page.evaluate(async (values) => {
    for (const node of app.graph._nodes)
      for (const widget of node.widgets ?? []) {
        const value = values[`${node.type}.${widget.name}`] ?? values[widget.name]
        if (value !== undefined) widget.value = value
      }
    const ended = new Promise((resolve) => {
      for (const kind of ['execution_success', 'execution_error', 'execution_interrupted'])
        app.api.addEventListener(kind, (event) => resolve({ kind, ...event.detail }), { once: true })
    })
    await app.queuePrompt(0, 1)
    const errors = app.lastNodeErrors ?? {}
    return Object.keys(errors).length ? { kind: 'refused', errors } : ended
  }, widgets)
  await page.waitForTimeout(500) // previews are taken back
  await settle(page)
  return end
}

// Press Run, and look until the end at the picture that the only node of a type shows in an element of the page: how
// many frames its file has, and whether it changes by itself while it is one file. `during` has each file's answer,
// `after` that of what stays.
export async function watch(page, widgets, type, shot) {
  await page.evaluate(() => {
    const make = URL.createObjectURL
    window.previews = {} // by source: the page itself may not fetch them again
    URL.createObjectURL = (blob) => {
      const source = make.call(URL, blob)
      previews[source] = blob
      return source
    }
  })
  let ended = false
  const end = run(page, widgets).finally(() => (ended = true))
  const during = []
  while (!ended) {
    const seen = await glance(page, type)
    if (!seen) await page.waitForTimeout(100)
    else if (!during.some((other) => other.source === seen.source && (other.moves || !seen.moves))) {
      during.push(seen)
      if (shot && seen.moves) await page.screenshot({ path: shot })
    }
  }
  return { end: await end, during, after: await glance(page, type, 4) }
}

async function glance(page, type, looks = 2) {
  const picture = await page.evaluateHandle((type) => {
    const node = app.graph._nodes.find((node) => node.type === type)
    const element = document.querySelector(`[data-node-id="${node.id}"]`)
    const inside = element ? element.querySelector('img[alt="Live sampling preview"]') : node.imgs?.[0]
    return inside?.isConnected ? inside : null
  }, type)
  if (!(await picture.evaluate((image) => image && image.complete && image.getBoundingClientRect().width > 24)))
    return null
  const file = await picture.evaluate(async (image) => {
    const blob = previews[image.src]
    const decoder = new ImageDecoder({ data: await blob.arrayBuffer(), type: blob.type })
    await decoder.tracks.ready
    const { frameCount: frames } = decoder.tracks.selectedTrack
    return { source: image.src, type: blob.type, bytes: blob.size, frames, width: image.naturalWidth }
  })
  const shots = []
  for (let i = 0; i < looks; i++) {
    if (i) await page.waitForTimeout(170)
    shots.push((await picture.screenshot({ timeout: 5000 }).catch(() => Buffer.alloc(0))).toString('base64'))
  }
  const same = await picture.evaluate((image, source) => image.isConnected && image.src === source, file.source)
  return same && shots.every(Boolean) ? { ...file, moves: new Set(shots).size > 1 } : null
}

// A picture of the page; where the graph shall fill the canvas, that stays so.
export async function photograph(page, shot, fill) {
  if (fill) {
    await page.evaluate(() => {
      const boxes = app.graph._nodes.map((node) => [...node.boundingRect])
      for (const group of app.graph._groups) boxes.push([...group.pos, ...group.size])
      const left = Math.min(...boxes.map((b) => b[0])), right = Math.max(...boxes.map((b) => b[0] + b[2]))
      const top = Math.min(...boxes.map((b) => b[1])), bottom = Math.max(...boxes.map((b) => b[1] + b[3]))
      const scale = Math.min(1460 / (right - left), 800 / (bottom - top), 1)
      app.canvas.ds.scale = scale
      app.canvas.ds.offset[0] = 90 / scale - left + (1460 / scale - (right - left)) / 2
      app.canvas.ds.offset[1] = 120 / scale - top
      app.canvas.setDirty(true, true)
    })
    await page.waitForTimeout(1500) // the page redraws, and the message that the run ended goes
  }
  await page.screenshot({ path: shot })
}

export async function helpWidths(page, types) {
  const answer = {}
  for (const type of types) {
    await page.evaluate((type) => {
      app.graph.clear()
      const node = LiteGraph.createNode(type)
      node.pos = [700, 350]
      app.graph.add(node)
      app.canvas.ds.scale = 1
      app.canvas.ds.offset = [0, 0]
      app.canvas.selectNode(node)
    }, type)
    await page.locator('[data-testid=info-button]').first().click()
    const title = await page.evaluate((type) => LiteGraph.registered_node_types[type].title, type)
    await page.waitForFunction(
      (title) => document.querySelector('.node-help-content h1')?.innerText === title, title
    )
    answer[type] = await page.evaluate(() => {
      const content = document.querySelector('.node-help-content .markdown-content')
      const parts = [...content.querySelectorAll('table, pre, p, li, h1, h2')]
      const wide = parts.filter((part) => part.scrollWidth > content.clientWidth + 1)
      return {
        panel: content.clientWidth,
        wide: wide.map((part) => `${part.tagName} ${part.scrollWidth}: ${part.innerText.slice(0, 60)}`),
      }
    })
  }
  return answer
}

export async function search(page, queries) {
  const toggle = () => page.evaluate(() => app.extensionManager.command.execute('Workspace.SearchBox.Toggle'))
  const answer = {}
  for (const query of queries) {
    await toggle()
    const field = page.locator('input[role=combobox], .comfy-vue-node-search-container input').locator('visible=true')
    await field.first().fill(query)
    await page.waitForTimeout(1500) // it searches while one types
    answer[query] = await page.evaluate(() =>
      [...document.querySelectorAll('[data-testid=result-item], .comfy-vue-node-search-container [role=option]')].map(
        (item) => item.innerText.trim().split('\n')[0]
      )
    )
    await page.keyboard.press('Escape')
    await page.waitForTimeout(500)
  }
  return answer
}
