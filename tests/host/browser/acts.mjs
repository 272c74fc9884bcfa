// What a user does: opens the page, drops a workflow, presses Run, opens help, searches for a node.
import { readFileSync } from 'node:fs'
import { basename } from 'node:path'

export const WINDOW = { width: 1600, height: 1000 }

export async function open(browser, url) {
  const page = await browser.newPage({ viewport: WINDOW })
  page.setDefaultTimeout(300_000)
  page.complaints = []
  page.on('pageerror', (error) => page.complaints.push(String(error)))
  await page.goto(url)
  await page.waitForFunction(() => window.app?.graph && window.LiteGraph?.registered_node_types?.UniVidLoad)
  // The start page loads a graph of its own, whose model is missing, and marks node 4 of it red a moment later:
  // by then it must not be ours.
  const marked = () => app.graph._nodes.some((node) => node.has_errors)
  await page.waitForFunction(marked, null, { timeout: 15_000 }).catch(() => {})
  return page
}

// Drop a workflow's file on the canvas: the types of nodes that are red, and the words of dialogs.
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
  await page.waitForTimeout(2500) // dialogs about missing nodes come a moment later, and boxes settle
  return page.evaluate(() => ({
    red: app.graph._nodes
      .filter((n) => n.has_errors || !(n.type in LiteGraph.registered_node_types))
      .map((n) => n.type),
    dialogs: [...document.querySelectorAll('.p-dialog, [role=dialog], .p-toast-message-error')]
      .map((d) => d.innerText.trim())
      .filter(Boolean),
  }))
}

// Press Run with these values in the widgets that have such names, and wait for the end.
export async function run(page, widgets) {
  const end = await page.evaluate(async (values) => {
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
  await page.waitForTimeout(4000) // pictures and clips arrive, previews are taken back, boxes settle
  return end
}

// A picture of the page; where the graph shall fill the canvas, that stays so.
export async function photograph(page, shot, fill) {
  if (fill)
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
